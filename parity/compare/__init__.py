"""Two traces, or two sides, to rows of a report."""
