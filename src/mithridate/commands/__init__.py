"""The verbs of the command `mithridate`, by what they are about; each module has an `app` that `cli` puts together."""
