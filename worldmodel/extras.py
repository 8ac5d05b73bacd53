"""Optional dependencies: import a package of an extra, or say how to install it."""

import importlib
from types import ModuleType

# Import names whose distribution is called otherwise.
_DISTRIBUTIONS = {"franky": "franky-control", "tensorflow_datasets": "tensorflow-datasets"}


def require(module: str, *, extra: str) -> ModuleType:
    """Returns the imported `module`, which belongs to the optional dependencies `extra`.

    Example: `tfds = require("tensorflow_datasets", extra="rlds")`.

    Raises:
        ImportError: The package is not installed; the message is the command that installs it. An
            error inside an installed package is passed on as it is.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise  # the package is there, but something it needs is not
        name = _DISTRIBUTIONS.get(root, root)
        raise ImportError(
            f"{name} is not installed; run: pip install 'worldmodel[{extra}]'", name=module
        ) from error
