"""Shape annotations of data, model and train are checked in the tests, and only here."""

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(["vqtune.data", "vqtune.model", "vqtune.train"], "typecheck.check")

# The first example pays for imports and for a busy machine; a deadline would only measure that.
settings.register_profile("vqtune", deadline=None)
settings.load_profile("vqtune")
