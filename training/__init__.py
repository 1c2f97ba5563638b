"""The MNIST study: which loss belongs to which head, answered by experiment."""
