"""Errors of the runtime.

Every message is one line that says what is wrong, where, and what to do about it. The mixed-in built-in types let a
caller who knows nothing of this package catch what he expects (`ValueError` for a bad argument).
"""


class EngineError(Exception):
    """Base of every error the runtime raises on purpose."""


class ConfigError(EngineError, ValueError):
    """An argument, an environment variable or a combination of them cannot be used."""


class WrongClassError(ConfigError, TypeError):
    """A class that a platform brings is not of the kind it stands in for."""


class ModelLoadError(EngineError):
    """A model directory is missing, incomplete, damaged, or of a kind this runtime does not run."""


class InvalidRequestError(EngineError, ValueError):
    """One request asks for something impossible; the engine itself is fine."""


class EngineDeadError(EngineError):
    """The engine has stopped; nothing more will come out of it."""


class PlatformError(EngineError):
    """No platform can be chosen, or the platform cannot do what was asked of it."""
