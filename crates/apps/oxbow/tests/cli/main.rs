//! The command line as its users see it: exit statuses, messages, streams, and the terminal.

#[path = "../../../../../guests/build.rs"]
mod build;
mod control;
mod disk;
mod engines;
mod guest;
mod hostile;
mod misuse;
mod paravirt;
mod run;
mod terminal;
