"""Floor 0: values. No I/O, no await, and no clock but `effects`."""
