"""Shape annotations of data, model and train are checked in the tests, and only here."""

from jaxtyping import install_import_hook

install_import_hook(["vqtune.data", "vqtune.model", "vqtune.train"], "typecheck.check")
