"""The command ``lossbench``: run suites, report them, list methods and problems, measure a user's own model.

Importing this package adds the commands of `on_suites`, `on_yours` and `look_up` to the `app` of `command_line`.
"""

from . import look_up as look_up
from . import on_suites as on_suites
from . import on_yours as on_yours
from .command_line import app as app
from .command_line import main as main
