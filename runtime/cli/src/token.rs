//! `mobula token`.

use std::io::IsTerminal;

use crate::{
    api::Api,
    args::{TokenCreateArgs, TokenRole},
    error::Error,
    home::Home,
    ready::say,
};

/// Prints a new token, and nothing else on standard output.
pub fn create(args: &TokenCreateArgs) -> Result<(), Error> {
    let home = Home::of(&args.home)?;
    let token = Api::open(&home)?.create_token(args.role, args.ttl)?;
    say(&token);
    if std::io::stdout().is_terminal() {
        let minutes = args.ttl.as_secs().div_ceil(60);
        let how = match args.role {
            TokenRole::Node => "pass it to `mobula node` with --join or in MOBULA_JOIN",
            TokenRole::Driver => {
                "give it to a program in MOBULA_TOKEN, and the head's HOST:PORT in MOBULA_ADDRESS"
            }
        };
        eprintln!("It is a secret, good once, for {minutes} min: {how}.");
    }
    Ok(())
}
