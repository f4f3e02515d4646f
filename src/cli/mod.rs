//! The command line: parsing, one file a group of commands, and the only place that prints.

pub mod args;
pub mod commands;
pub mod config;
pub mod demo;
pub mod interrupt;
pub mod measuring;
pub mod runtime;
pub mod sweep;
pub mod ui;
