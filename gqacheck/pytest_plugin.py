"""The pytest entry point: registered by installing gqacheck, and without options, hooks or fixtures in this version.

It imports nothing, so that it costs a pytest run nothing; ``-p no:gqacheck`` leaves it out all the same.
"""
