//! What a bottle is: its specification, its policy, its life, and the seam behind which it runs.
//!
//! This crate knows neither libkrun, nor a terminal, nor the network, and holds no `unsafe` code.
//! Read it in this order: [`id`], [`units`] and [`image`] (names and numbers that cannot be wrong),
//! [`spec`] (a bottle described), [`policy`] (what it may reach, and the functions that decide),
//! [`credential`] (what it may spend without having it), [`ports`] (ways in), [`event`] and [`log`]
//! (what it did and said), [`backend`] (the seam), [`listing`] (what is known of bottles), [`images`]
//! (what bottles boot), [`registry`] (which backends there are), [`reporter`] (what happens during a
//! start), [`text`] (how strings that somebody else chose are printed).
#![forbid(unsafe_code)]

pub mod backend;
pub mod credential;
pub mod event;
pub mod id;
pub mod image;
pub mod images;
pub mod listing;
pub mod log;
pub mod policy;
pub mod ports;
pub mod registry;
pub mod reporter;
pub mod secret;
pub mod spec;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
pub mod units;
