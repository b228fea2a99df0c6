//! The scripts that change the store. Each touches the keys of one slot only; where one server has all slots, `STORE`
//! also binds names and writes to the run above.

use super::link::Script;

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)*) => {
        $($(#[$doc])*
        pub(super) static $name: Script =
            Script::new(concat!(include_str!("lua/common.lua"), include_str!($file)));)*
    };
}

// Of the two that come with nearly every batch the usual cases come first, without what the scripts
// share: to define that takes as long as they do.

/// Copies of a stretch of blocks, made where they are not there.
pub(super) static STORE: Script = Script::new(concat!(
    include_str!("lua/bind_free.lua"),
    include_str!("lua/stretched.lua"),
    include_str!("lua/store_quick.lua"),
    include_str!("lua/common.lua"),
    include_str!("lua/store.lua")
));

/// Copies of a stretch that was stored before, if it is still there.
pub(super) static JOIN: Script =
    Script::new(concat!(include_str!("lua/stretched.lua"), include_str!("lua/join.lua")));

/// The same where the proof of it is beside the run's names.
pub(super) static JOIN_PROVEN: Script = Script::new(include_str!("lua/join_proven.lua"));

/// Names get meanings.
pub(super) static BIND: Script = Script::new(concat!(
    include_str!("lua/bind_free.lua"),
    include_str!("lua/bind_quick.lua"),
    include_str!("lua/common.lua"),
    include_str!("lua/bind.lua")
));

/// More hangs below a block of another segment.
pub(super) static HANG: Script = Script::new(include_str!("lua/hang.lua"));

scripts! {
    /// A run that was made says where it hangs.
    ADOPT = "lua/adopt.lua";
    /// Whose turn it is.
    BEGIN = "lua/begin.lua";
    /// Whether a batch goes on top of what is there.
    APPEND = "lua/append.lua";
    /// A worker's part is begun anew.
    RENEW = "lua/renew.lua";
    /// A lease is put off.
    KEEP = "lua/keep.lua";
    /// A turn is over.
    DONE = "lua/done.lua";
    /// A name moves to another vocabulary.
    RENAME = "lua/rename.lua";
    /// All that a slot holds of a run goes.
    DROP = "lua/drop.lua";
    /// Copies of blocks that are there.
    HOLD = "lua/hold.lua";
    /// Version, secret, birth.
    MAKE = "lua/make.lua";
    /// A worker's record.
    HOME = "lua/home.lua";
    /// A number for a text.
    INTERN = "lua/intern.lua";
    /// A text loses its number.
    RELEASE = "lua/release.lua";
    /// Less hangs below a block of another segment.
    KID = "lua/kid.lua";
    /// Slots go out of sight.
    RETIRE = "lua/retire.lua";
    /// A number for a (worker, group, tier).
    SLOT = "lua/slot.lua";
    /// Copies go.
    TAKE = "lua/take.lua";
    /// Names lose meanings.
    UNBIND = "lua/unbind.lua";
    /// A block loses a name that was refused.
    UNNAME = "lua/unname.lua";
    /// Copies of blocks that have no place.
    UNPLACED = "lua/unplaced.lua";
    /// Who waits for a name.
    WAIT = "lua/wait.lua";
}
