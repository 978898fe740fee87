"""What notebooks 05, 06 and 11 are told. They read records and draw: their tables and figures are views, made anew each time."""

from parlib.experiments.params import Params


class Evaluate(Params):
    """Parameters of 05_evaluate."""

    notebook = "05_evaluate"


class NewTriggers(Params):
    """Parameters of 06_new_triggers."""

    notebook = "06_new_triggers"


class Distil(Params):
    """Parameters of 11_distil."""

    notebook = "11_distil"
