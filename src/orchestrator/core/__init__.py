"""What is true: values, the event catalogue, the rules of a run. No I/O, no clock, no async."""
