//! What this host offers the tests. What is missing is reported here once, or fails here where it is required.

use sbxrt_tests::{Need, identities, require};

#[test]
fn this_host_has_what_the_tests_use() {
    let needs = [
        Need::Root,
        Need::UserNamespaces,
        Need::Overlay,
        Need::Fixtures,
        Need::Registry,
    ];
    for need in needs {
        let _reported = require(need);
    }
    assert!(!identities().is_empty());
}
