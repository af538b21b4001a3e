"""The public test kit: stand-ins that a test can drive byte by byte."""
