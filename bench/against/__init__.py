"""What the server is measured against, on the same work in the same run."""
