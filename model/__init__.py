"""DeepLabv3+: the network, its data, its training and its evaluation."""
