"""The errors of leaven: each says what was wrong, where, what was expected and what to do."""


class LeavenError(Exception):
    """Base of every error that leaven raises for the user's input; the command line exits with code 2 on it."""


class ConfigError(LeavenError):
    """An option or argument has a value that cannot be used."""


class DataError(LeavenError):
    """Data is missing, malformed or of the wrong kind."""


class ModelError(LeavenError):
    """A model or checkpoint cannot be loaded, or does not fit where it is used."""


class CheckpointError(LeavenError):
    """A training checkpoint is damaged, incomplete or from another run."""


class CatalogError(LeavenError):
    """No such system, task or arm."""
