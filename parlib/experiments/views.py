"""What notebooks 05 and 06 are told. They read records and draw: their tables and figures are views, made anew each time."""

from parlib.experiments.params import Params


class Evaluate(Params):
    """Parameters of 05_evaluate."""

    notebook = "05_evaluate"


class NewTriggers(Params):
    """Parameters of 06_new_triggers."""

    notebook = "06_new_triggers"
