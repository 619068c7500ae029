"""Errors a user can cause. `exit_code` is what the entry scripts look for: they print the message and stop with it."""


class UserError(Exception):
    """Something the user can put right; the message says what is wrong and what to do, in one or two lines."""

    exit_code = 2
