//! What a bottle is: its specification, its policy, its life, and the seam behind which it runs.
//!
//! This crate knows neither libkrun, nor a terminal, nor the network, and holds no `unsafe` code.
//! Read it in this order: [`id`], [`units`] and [`image`] (names and numbers that cannot be wrong),
//! [`spec`] (a bottle described), [`policy`] (what it may reach, and the functions that decide),
//! [`credential`] (what it may spend without having it), [`event`] (what it did), [`backend`] (the seam), [`images`] (what bottles boot), [`registry`]
//! (which backends there are), [`reporter`] (what happens during a start), [`text`] (how strings that
//! somebody else chose are printed).
#![forbid(unsafe_code)]

pub mod backend;
pub mod credential;
pub mod event;
pub mod id;
pub mod image;
pub mod images;
pub mod policy;
pub mod registry;
pub mod reporter;
pub mod secret;
pub mod spec;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
pub mod units;
