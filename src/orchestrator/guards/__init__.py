"""Whatever decides what may pass: secrets in and out, and addresses that may be dialled."""
