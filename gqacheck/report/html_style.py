"""The style sheet of the HTML report: light and dark, narrow and wide, on paper. Nothing in it loads anything."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #ffffff; --soft: #f4f6f8; --line: #d8dee4; --ink: #1f2328; --dim: #59636e;
  --good: #1a7f37; --bad: #b3261e; --warn: #8a5a00; --note: #0a5cb8; --unknown: #6639a6;
  --good-soft: #eaf6ed; --bad-soft: #fdeeec; --warn-soft: #fff5e0; --note-soft: #eaf3fd; --unknown-soft: #f4effb;
  --now: #0072b2; --before: #c9d3dc; --masked: #d07a00; --mono: ui-monospace, SFMono-Regular, Menlo, Consolas,
    "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0f1216; --card: #15181d; --soft: #1b1f26; --line: #30363d; --ink: #e6edf3; --dim: #9aa5b1;
    --good: #5fd27c; --bad: #ff8a80; --warn: #f0b84a; --note: #79b8ff; --unknown: #c8a6ff;
    --good-soft: #12261a; --bad-soft: #2d1716; --warn-soft: #2a2110; --note-soft: #10202f; --unknown-soft: #1f182c;
    --now: #56b4e9; --before: #47525e; --masked: #f0a04b;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere;
}
main { max-width: 1080px; margin: 0 auto; padding: 20px 20px 60px; }
h1, h2, h3, h4, h5, p, ul, ol, dl, dd, figure, blockquote { margin: 0; padding: 0; }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--dim); }
h2 { font-size: 1.6rem; line-height: 1.25; font-weight: 700; }
h3 { font-size: 1.15rem; font-weight: 650; display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: baseline; }
h4 { font-size: 1rem; font-weight: 600; }
h5 { font-size: .85rem; font-weight: 650; margin-top: 10px; }
h3 .dim, figcaption .dim { font-size: .85rem; font-weight: 400; }
section, .fold { margin-top: 36px; }
section > h3 { padding-bottom: 6px; border-bottom: 1px solid var(--line); margin-bottom: 14px; }
article + article { margin-top: 64px; padding-top: 24px; border-top: 3px solid var(--line); }
code, q, blockquote { unicode-bidi: isolate; }
code { font-family: var(--mono); font-size: .88em; }
.dim { color: var(--dim); }
a { color: var(--note); }
:focus-visible { outline: 3px solid var(--note); outline-offset: 2px; }

.verdict {
  margin-top: 14px; padding: 20px 22px; border-radius: 12px; border: 1px solid var(--line); border-left: 8px solid;
  background: var(--soft);
}
.verdict.pass { border-left-color: var(--good); background: var(--good-soft); }
.verdict.fail { border-left-color: var(--bad); background: var(--bad-soft); }
.verdict.error { border-left-color: var(--unknown); background: var(--unknown-soft); }
.verdict .word { font-size: .95rem; font-weight: 800; letter-spacing: .06em; }
.pass > .word, .pass-text { color: var(--good); }
.fail > .word, .fail-text { color: var(--bad); }
.error > .word, .error-text { color: var(--unknown); }
.verdict .path { margin-top: 8px; }
.verdict .identity { margin-top: 2px; font-size: .92rem; }
.verdict .could-not { margin-top: 10px; font-weight: 600; color: var(--unknown); }

.claims { list-style: none; display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 12px;
  margin-top: 14px; }
.claim { border: 1px solid var(--line); border-top: 4px solid var(--dim); border-radius: 10px; padding: 12px 14px;
  background: var(--card); }
.claim h3 { justify-content: space-between; font-size: 1rem; }
.claim p { font-size: .9rem; color: var(--dim); margin-top: 4px; }
.claim.pass { border-top-color: var(--good); } .claim.pass .state { color: var(--good); }
.claim.fail { border-top-color: var(--bad); } .claim.fail .state { color: var(--bad); }
.claim.not-checked { border-top-color: var(--unknown); border-top-style: dashed; }
.claim.not-checked .state { color: var(--unknown); }
.claim.not-applicable .state { color: var(--dim); }

.card { border: 1px solid var(--line); border-left: 5px solid var(--note); border-radius: 10px; padding: 14px 16px;
  margin-top: 12px; background: var(--card); }
.card.error { border-left-color: var(--bad); } .card.warning { border-left-color: var(--warn); }
.card h4 { display: flex; flex-wrap: wrap; gap: 4px 9px; align-items: baseline; }
.card .code { font-family: var(--mono); font-size: .92rem; }
.card .where { margin-left: auto; font-weight: 400; font-size: .9rem; }
.badge { font-size: .72rem; font-weight: 700; letter-spacing: .04em; text-transform: uppercase; padding: 1px 8px;
  border-radius: 99px; color: var(--note); background: var(--note-soft); }
.card.error .badge { color: var(--bad); background: var(--bad-soft); }
.card.warning .badge { color: var(--warn); background: var(--warn-soft); }
.message { margin-top: 8px; }
.facts { font-size: .84rem; margin-top: 4px; }
.card dl { margin-top: 8px; display: grid; gap: 4px; }
.card dl > div { display: grid; grid-template-columns: 4.2em 1fr; }
.card dt { color: var(--dim); }
.card dl > .fix { background: var(--good-soft); border-radius: 6px; padding: 4px 8px; margin: 2px -8px 0; }
.card dl > .fix dt { color: var(--good); font-weight: 600; }
.about { margin-top: 10px; font-size: .92rem; }
.about > :not(summary) { margin-left: 14px; max-width: 75ch; }
details > summary { cursor: pointer; color: var(--note); }
summary > h3 { display: inline; margin-right: 10px; color: var(--ink); }
.fold > :not(summary) { margin-top: 12px; }

.wide { overflow-x: auto; max-width: 100%; }
.map svg { display: block; width: 100%; min-width: 760px; max-width: none; height: auto; }
.map { border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
.told { margin-bottom: 12px; } .told p + p { margin-top: 4px; } .map + details { margin-top: 12px; }
.map + details > .map { margin-top: 12px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); gap: 18px 26px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 10px; align-items: baseline; }
.small { align-self: end; } .small figcaption { font-size: .9rem; margin-bottom: 6px; }
figcaption .dim { white-space: nowrap; }
svg { display: block; overflow: visible; }
.columns .before { fill: var(--before); } .columns .now { fill: var(--now); } .columns .wrong { fill: var(--bad); }
.columns { border-bottom: 1px solid var(--dim); }
.ends { display: flex; justify-content: space-between; font-size: .75rem; color: var(--dim); margin-top: 2px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin-top: 8px; font-size: .85rem; color: var(--dim); }
.key::before { content: ""; display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px; background: var(--now); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.key.before::before { background: var(--before); } .key.wrong::before { background: var(--bad); }
.key.guess::before { background: none; border-left: 2px dashed var(--bad); border-radius: 0; width: 4px; }
.key.healthy::before { background: var(--good); height: 4px; vertical-align: 3px; }
.ppl { margin-top: 18px; padding: 14px 16px;
  border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
.ppl figcaption { margin-bottom: 10px; } .ppl p { margin-top: 8px; }
.ppl p + svg { margin-top: 12px; } .ppl p.dim { font-size: .86rem; }
.scale .grid { stroke: var(--line); stroke-width: 1; } .scale .track { stroke: var(--line); stroke-width: 1; }
.scale text { font-size: .82rem; fill: var(--ink); stroke: var(--card); stroke-width: 4px; paint-order: stroke; }
.scale .value { text-anchor: end; font-weight: 650; }
.scale text.tick { font-size: .7rem; fill: var(--dim); text-anchor: middle; }
.scale text.first { text-anchor: start; } .scale text.last { text-anchor: end; }
.scale .guess { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 4; }
.scale .healthy { stroke: var(--good); stroke-width: 4; }
.scale .error { stroke-width: 4; stroke-opacity: .45; stroke-linecap: butt; }
.scale .now { fill: var(--now); stroke: var(--now); } .scale .bad { fill: var(--bad); stroke: var(--bad); }
.scale .before { fill: var(--dim); stroke: var(--dim); } .scale .masked { fill: var(--masked); stroke: var(--masked); }
.scale .hollow { fill: var(--card); stroke-width: 2.5; }
.said { margin: 14px 0 0 20px; } section > p.dim { font-size: .88rem; margin-top: 8px; }

.sample { margin-top: 14px; } .sample > p { font-size: .92rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 12px;
  margin-top: 6px; }
.text { border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px; background: var(--soft); }
.text.bad { background: var(--bad-soft); }
.text h4 { font-size: .8rem; color: var(--dim); }
blockquote { font-family: Georgia, "DejaVu Serif", serif; margin-top: 4px; white-space: pre-wrap; }

table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--dim); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; }
.sample + details { margin-top: 12px; } table + p.dim { margin-top: 6px; font-size: .86rem; }
.overview .wide { margin-top: 12px; } .overview + article { margin-top: 40px; }
.numbers { margin-top: 18px; font-variant-numeric: tabular-nums; }
footer { margin-top: 48px; font-size: .85rem; color: var(--dim); border-top: 1px solid var(--line); padding-top: 10px; }

@media (max-width: 600px) {
  main { padding: 12px 14px 40px; }
  h2 { font-size: 1.3rem; }
  .verdict { padding: 14px 16px; }
  .card .where { margin-left: 0; }
  .card dl > div { grid-template-columns: 1fr; }
}
@media print {
  html { font-size: 10.5px; }
  body { background: #fff; }
  main { max-width: none; padding: 0; }
  section, .fold { margin-top: 20px; }
  .card, .claim, .ppl, .sample, .small, .map, tr { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
  .map svg { min-width: 0; max-width: 100%; }
  .wide { overflow: visible; }
  .verdict, .claim, .card, .badge, .text, .map, rect, .fix { print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  .fold::details-content, .card > details:not(.about)::details-content { content-visibility: visible; height: auto; }
}
"""
