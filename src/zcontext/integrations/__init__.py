"""Doors to other frameworks; each is imported by name, none of them by `import zcontext`.

from zcontext.integrations.langchain import ZContextCompressor
from zcontext.integrations.llamaindex import ZContextPostprocessor
"""
