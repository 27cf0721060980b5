"""The names of the bundled encoders. Loads nothing, so that flags can show them as defaults."""

BUNDLED = "bundled:"
DEFAULT_VISION = BUNDLED + "efficientnet-lite0"
DEFAULT_TEXT = BUNDLED + "all-minilm-l6-v2"
