//! Looking at page tables, a guest's and ours, without changing them: for dumps and debuggers.
//!
//! [`row`] is what is seen of an entry, or of a run of alike ones; [`guest`] lists a guest's tables, [`tables`] ours
//! (shadow and direct), [`listing`] keeps both short, [`beside`] puts them next to each other.
//!
//! Everything is bounded by [`Limits`]: a guest's tables may point to themselves.

pub mod beside;
pub mod guest;
pub mod listing;
pub mod row;
pub mod tables;

pub use beside::{Beside, by_gpa, by_gva};
pub use guest::guest_tables;
pub use listing::{Limits, Listing};
pub use row::{Row, Seen, Share};
pub use tables::{TableSource, our_tables};

#[cfg(test)]
mod tests;
