//! Real processes under faults; all of it is in the test binary `chaos`.

#![forbid(unsafe_code)]
