"""One run from its settings to its record: ``settings``, ``execute``, then ``language`` or ``tabular``."""
