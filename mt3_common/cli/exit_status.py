"""Exit statuses of the command lines."""

SUCCESS, SOME_FAILED, NOT_STARTED, INTERRUPTED = 0, 1, 2, 130
