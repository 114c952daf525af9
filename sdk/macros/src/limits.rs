//! What an actor says about its limits: `concurrency`, `groups(…)`, `inbox`, `when_full`, `unordered`, and
//! `#[method(group = "…")]` on its methods.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{
    Error, Expr, ExprLit, Lit, Meta, MetaNameValue, Result, Token, parse::Parser, punctuated::Punctuated,
    spanned::Spanned,
};

use crate::options::text;

/// Most groups of one actor, as `mobula_proto::limits` has it.
const GROUPS_MAX: usize = 64;

type Metas = Punctuated<Meta, Token![,]>;

/// The limits of an actor.
pub struct Limits {
    /// A constant of type `Rules`.
    pub rules: TokenStream,
    /// Whether its calls may overtake those that wait for their arguments.
    pub unordered: bool,
    groups: Vec<String>,
}

/// Takes the limits out of an actor's attributes; the others come back.
pub fn take(attributes: TokenStream) -> Result<(Limits, TokenStream)> {
    let all = Metas::parse_terminated.parse2(attributes)?;
    let mut rest = Metas::new();
    let mut fields = TokenStream::new();
    let mut groups: Vec<(String, u32)> = Vec::new();
    let mut unordered = false;
    for meta in all {
        match &meta {
            Meta::Path(path) if path.is_ident("unordered") => unordered = true,
            Meta::List(list) if list.path.is_ident("groups") => {
                let declared =
                    list.parse_args_with(Punctuated::<MetaNameValue, Token![,]>::parse_terminated)?;
                for pair in declared {
                    let name = pair.path.get_ident().map(ToString::to_string).ok_or_else(|| {
                        Error::new(pair.path.span(), "write groups as `groups(io = 4, compute = 1)`")
                    })?;
                    if groups.iter().any(|(other, _)| *other == name) {
                        return Err(Error::new(
                            pair.path.span(),
                            format!("the group `{name}` is there twice"),
                        ));
                    }
                    groups.push((name, count(&pair.value)?));
                }
                if groups.len() > GROUPS_MAX {
                    return Err(Error::new(list.span(), format!("an actor has at most {GROUPS_MAX} groups")));
                }
            }
            Meta::NameValue(pair) if pair.path.is_ident("concurrency") => {
                let concurrency = count(&pair.value)?;
                fields.extend(quote!(concurrency: #concurrency,));
            }
            Meta::NameValue(pair) if pair.path.is_ident("inbox") => {
                let inbox = count(&pair.value)?;
                fields.extend(quote!(inbox: #inbox,));
            }
            Meta::NameValue(pair) if pair.path.is_ident("when_full") => {
                let when = match text(&pair.value)?.as_str() {
                    "wait" => quote!(Wait),
                    "refuse" => quote!(Refuse),
                    _ => return Err(Error::new(pair.value.span(), "write \"wait\" or \"refuse\"")),
                };
                fields.extend(quote!(when_full: ::mobula::private::WhenFull::#when,));
            }
            _ => rest.push(meta),
        }
    }
    let (names, counts): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
    let rules = quote!(::mobula::private::Rules {
        #fields
        groups: &[#((#names, #counts)),*],
        unordered: #unordered,
        ..::mobula::private::Rules::DEFAULT
    });
    Ok((Limits { rules, unordered, groups: names }, quote!(#rest)))
}

impl Limits {
    /// The number of the group that `#[method(group = …)]` names, 0 for none.
    pub fn group_of(&self, group: Option<&Expr>, exclusive: bool) -> Result<u16> {
        let Some(value) = group else { return Ok(0) };
        if exclusive {
            return Err(Error::new(
                value.span(),
                "a `&mut self` method has the actor to itself and cannot be in a group: take `&self`",
            ));
        }
        let name = text(value)?;
        let at = self.groups.iter().position(|other| *other == name).ok_or_else(|| {
            Error::new(
                value.span(),
                format!(
                    "the actor has no group `{name}`: declare it, `#[mobula::actor(groups({name} = 4))]`"
                ),
            )
        })?;
        Ok(u16::try_from(at + 1).unwrap_or(u16::MAX))
    }
}

fn count(value: &Expr) -> Result<u32> {
    let number = match value {
        Expr::Lit(ExprLit { lit: Lit::Int(int), .. }) => int.base10_parse::<u32>().ok(),
        _ => None,
    };
    number.filter(|number| *number > 0).ok_or_else(|| {
        Error::new(value.span(), "write how many calls, a whole number of at least 1, for example 4")
    })
}
