"""Which globals a real checkpoint's pickle names, which only an attack needs, and everything in between.

A pickle that names a global imports it when it is loaded, and may call it. This is a list of the known, not a proof of
innocence: whatever it does not hold is unknown, and what the second list holds is dangerous.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

Standing: TypeAlias = Literal["known", "unknown", "dangerous"]

_RUNS = "can run other programs"
_CODE = "can run code that it is handed as text or bytes"
_IMPORTS = "imports whatever it is told to"
_CALLS = "calls whatever function it is handed"
_FILES = "can read, write or delete files"
_NETWORK = "can open network connections"
_HUB = "can fetch code from a hub and run it"
_NATIVE = "can load native code"
_PICKLES = "can unpickle further data, which may name anything"
_REACHES = "reaches into the interpreter"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _each(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(_words(names), reason)


_DANGEROUS: Mapping[str, str] = {
    **_each("os posix nt subprocess _posixsubprocess commands popen2 pty webbrowser multiprocessing asyncio "
            "concurrent pip ensurepip venv setuptools distutils _aix_support _osx_support _pyrepl platform.popen "
            "platform._syscmd_ver uuid._get_command_stdout torch.distributed.elastic torch.utils.collect_env "
            "pydoc torch._inductor torch.utils.cpp_extension", _RUNS),
    **_each("runpy code.InteractiveInterpreter code.InteractiveConsole code.interact code.compile_command codeop pdb "
            "bdb doctest profile.run profile.runctx profile.Profile cProfile trace.Trace timeit idlelib lib2to3 "
            "test.support marshal types.FunctionType types.CodeType types.LambdaType new.function new.code "
            "cloudpickle dill torch.fx torch.jit torch._dynamo torch.package torch.testing torch.utils.bottleneck "
            "torch.distributed.rpc numpy.testing numpy.f2py numpy.distutils sympy.sympify sympy.parsing "
            "IPython numexpr.evaluate pandas.eval pandas.core.computation", _CODE),
    **_each("importlib imp pkgutil zipimport modulefinder", _IMPORTS),
    **_each("operator _operator functools.reduce itertools.starmap itertools.accumulate threading _thread sched "
            "atexit signal", _CALLS),
    **_each("shutil tempfile fileinput linecache io _io _pyio zipfile tarfile sqlite3 dbm codecs.open "
            "logging.FileHandler logging.config torch.save torch.from_file numpy.fromfile numpy.memmap numpy.save "
            "numpy.savetxt numpy.loadtxt numpy.genfromtxt", _FILES),
    **_each("socket _socket ssl _ssl socketserver urllib urllib2 urllib3 http httplib ftplib smtplib poplib imaplib "
            "nntplib telnetlib xmlrpc xmlrpclib aiohttp httpx requests torch.utils.model_zoo wget", _NETWORK),
    **_each("torch.hub huggingface_hub transformers.dynamic_module_utils transformers.agents transformers.tools "
            "transformers.pipelines", _HUB),
    **_each("ctypes _ctypes cffi _cffi_backend numpy.ctypeslib torch.ops.load_library torch.classes.load_library",
            _NATIVE),
    **_each("pickle _pickle cPickle shelve joblib pandas.read_pickle pandas.io jsonpickle yaml torch.load "
            "torch.serialization.load torch.serialization._load torch.serialization._legacy_load "
            "torch.storage._load_from_bytes torch.utils._config_module torch.utils.data.datapipes numpy.load",
            _PICKLES),
    **_each("sys gc inspect faulthandler site", _REACHES),
    **{f"{module}.{name}": reason for module in ("builtins", "__builtin__") for names, reason in (
        ("eval exec execfile compile input breakpoint", _CODE), ("__import__ reload help", _IMPORTS),
        ("open file", _FILES), ("apply map filter", _CALLS), ("setattr delattr globals locals vars", _REACHES),
    ) for name in names.split()},
}  # fmt: skip
"""Module or name, with everything below it -> what it can do."""

_COMPILED = (
    "convert_frame.CatchErrorsWrapper", "convert_frame.ConvertFrame", "convert_frame.ConvertFrameAssert",
    "convert_frame.ConvertFrameBox", "eval_frame.OptimizeContext", "hooks.Hooks", "repro.after_dynamo.WrapBackendDebug",
)  # fmt: skip
_ODD: Mapping[str, str] = {
    **dict.fromkeys(
        ("builtins.getattr", "__builtin__.getattr"),
        "fetches any attribute by name: pickles of nested functions need it, and so do exploits",
    ),
    **dict.fromkeys(
        (f"torch._dynamo.{name}" for name in _COMPILED),
        "is part of a torch.compile wrapper: save model._orig_mod instead",
    ),
}
"""Unknown, with a reason. Healthy PhiMoE modules of transformers 5 hold getattr, so it is no error."""


def _below(module: str, names: str) -> frozenset[str]:
    return frozenset(f"{module}.{name}" for name in names.split())


_KNOWN = (
    _below("builtins", "set frozenset list dict tuple int float complex bool str bytes bytearray slice range object "
                       "Ellipsis NotImplemented")
    | _below("__builtin__", "set frozenset list dict tuple int long float complex bool str unicode bytes bytearray "
                            "slice xrange object Ellipsis NotImplemented")
    | _below("collections", "OrderedDict defaultdict Counter deque")
    | _below("pathlib", "Path PosixPath WindowsPath PurePosixPath PureWindowsPath")
    | _below("pathlib._local", "Path PosixPath WindowsPath PurePosixPath PureWindowsPath")
    | _below("datetime", "datetime date time timedelta timezone")
    | _below("numpy", "ndarray dtype")
    | _below("numpy.core.multiarray", "_reconstruct scalar")
    | _below("numpy._core.multiarray", "_reconstruct scalar")
    | _below("torch", "Size Tensor device per_tensor_affine per_channel_affine per_tensor_symmetric relu tanh sigmoid "
                      "per_channel_symmetric per_channel_affine_float_qparams strided sparse_coo sparse_csr "
                      "contiguous_format preserve_format channels_last bool uint8 int8 int16 int32 int64 uint16 "
                      "uint32 uint64 float16 bfloat16 float32 float64 complex32 complex64 complex128 half float double "
                      "long int short qint8 quint8 qint32 quint4x2 quint2x4 float8_e4m3fn float8_e5m2 float8_e4m3fnuz "
                      "float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2")
    | _below("torch._C._nn", "gelu silu")
    | _below("torch._tensor", "_rebuild_from_type _rebuild_from_type_v2")
    | _below("torch.tensor", "_rebuild_from_type _rebuild_tensor")
    | _below("torch.nn.functional", "relu relu6 gelu silu mish elu selu softplus hardswish leaky_relu sigmoid tanh "
                                    "softmax scaled_dot_product_attention")
    | _below("transformers.activations", "gelu gelu_new gelu_fast gelu_python quick_gelu linear_act silu mish")
    | _below("omegaconf", "dictconfig.DictConfig listconfig.ListConfig base.ContainerMetadata base.Metadata "
                          "nodes.AnyNode")
    | _below("deepspeed", "runtime.zero.config.ZeroStageEnum runtime.fp16.loss_scaler.LossScaler "
                          "runtime.fp16.loss_scaler.DynamicLossScaler utils.tensor_fragment.fragment_address")
    | {"_codecs.encode", "copy_reg._reconstructor", "copyreg._reconstructor", "functools.partial", "uuid.UUID",
       "types.SimpleNamespace", "types.NoneType", "argparse.Namespace", "typing.Any", "decimal.Decimal",
       "torch.serialization._get_layout", "torch.torch_version.TorchVersion", "torch.utils.checkpoint.checkpoint",
       "torch.utils.hooks.RemovableHandle", "torch._dynamo.eval_frame.OptimizedModule", "logging.getLogger",
       "torch.autograd.variable.Variable", "sentencepiece.SentencePieceProcessor"}
)  # fmt: skip
"""Whole names. ``functools.partial`` is here because a model with gradient checkpointing holds it, and because the
function that it would call is a global of its own."""

_CLASSES_BELOW = _words(
    "torch.nn. torch.optim. torch.ao.nn. torch.amp. torch.cuda.amp. numpy.dtypes. transformers.models. "
    "transformers.activations. transformers.generation. transformers.integrations. transformers.quantizers. "
    "transformers.configuration_utils. transformers.modeling_ transformers.tokenization_ "
    "transformers.feature_extraction_ transformers.image_processing_ transformers.processing_utils. "
    "transformers.pytorch_utils. transformers.cache_utils. transformers.training_args transformers.trainer_ "
    "transformers.utils.quantization_config. transformers.utils.generic. tokenizers. peft. LLMPruner.models. "
    "bitsandbytes. torchao. compressed_tensors. optimum.quanto. auto_gptq. gptqmodel. awq.modules. hqq.core. "
    "accelerate.hooks. accelerate.utils.dataclasses. torch.distributed.tensor. torch.distributed._tensor."
)
"""Packages whose classes real checkpoints hold: a name below one of these is known when it is that of a class."""

_FUNCTIONS_BELOW = ("torch._utils._rebuild_", "transformers.modeling_rope_utils._compute_")
"""Beginnings of function names that are known: they rebuild tensors or compute frequencies."""

_STORAGES_IN = frozenset({"torch", "torch.storage", "torch.cuda"})
_OWN_NAMES = frozenset({"__builtin__", "__main__"})
_NOT_INSIDE = frozenset(
    _words("os sys posix nt subprocess importlib builtins shutil socket runpy pickle ctypes marshal")
)
_PACKAGES = frozenset(_words("torch numpy transformers tokenizers peft LLMPruner collections accelerate bitsandbytes"))


def classify(path: str) -> tuple[Standing, str]:
    """How the global ``path`` (``module.name``) stands; for what is not known, the reason where there is one.

    >>> classify("torch.nn.modules.linear.Linear")
    ('known', '')
    >>> classify("posix.system")
    ('dangerous', 'can run other programs')
    >>> classify("transformers_evil.modeling.LlamaModel")
    ('unknown', '')
    """
    if path in _KNOWN:
        return "known", ""
    if path in _ODD:
        return "unknown", _ODD[path]
    reason = _find_danger(path)
    if reason:
        return "dangerous", reason
    if not (path.isascii() and path.isprintable()):
        return "unknown", "holds characters that can be made to look like a known name"
    names = path.split(".")
    if any(name.startswith("__") and name not in _OWN_NAMES for name in names):
        return "dangerous", "walks to an attribute of the interpreter's own, as exploits do"
    if names[0] not in _PACKAGES:
        return ("known" if _is_known_class(path, names) else "unknown"), ""
    if not _NOT_INSIDE.isdisjoint(names[1:]):
        return "dangerous", "goes through a known package to a module that has nothing to do with models"
    if any(_is_class(name) for name in names[1:-1]):
        return "unknown", "reaches past a class for one of its attributes"
    module, _, name = path.rpartition(".")
    if name.endswith("Storage") and module in _STORAGES_IN:
        return "known", ""
    known = _is_known_class(path, names) or path.startswith(_FUNCTIONS_BELOW)
    return ("known" if known else "unknown"), ""


def _is_known_class(path: str, names: list[str]) -> bool:
    return path.startswith(_CLASSES_BELOW) and _is_class(names[-1]) and not any(map(_is_class, names[1:-1]))


def _find_danger(path: str) -> str | None:
    end = len(path)
    while end > 0:
        reason = _DANGEROUS.get(path[:end])
        if reason:
            return reason
        end = path.rfind(".", 0, end)
    return None


def _is_class(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()
