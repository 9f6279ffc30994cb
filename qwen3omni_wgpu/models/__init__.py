"""The parts of the network, one file per part, and the configuration that is read from a model file."""
