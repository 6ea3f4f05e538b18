//! What every driver must do, as checks that take any driver.
