//! Machine assembly, loaders, configuration.
