//! Everything that can be used up, used up: `docs/limits.md` says what becomes of it.

use sbxrt_tests::{Fixtures, TruthTable};

use crate::attack;

#[test]
fn every_bomb_ends_as_documented() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    attack(|sbxrt| TruthTable::measure(sbxrt, &fixtures, |_| true).compare());
}
