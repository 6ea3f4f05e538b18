//! What every store promises, as checks that take any implementation.
