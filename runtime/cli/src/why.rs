//! `mobula why`.

use crate::{api::Api, args::WhyArgs, error::Error, home::Home, ready::say};

/// Says why something waits.
pub fn run(args: &WhyArgs) -> Result<(), Error> {
    let (json, explanation) = Api::open(&Home::of(&args.home)?)?.why(&args.id)?;
    say(if args.json { json } else { explanation.to_string() }.trim_end());
    Ok(())
}
