//! `key = value` attributes.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{
    Error, Expr, ExprLit, Lit, Meta, Result, Token,
    parse::{Parse, ParseStream},
    punctuated::Punctuated,
    spanned::Spanned,
};

/// The attributes of a task or an actor, as calls on `Options`, and the registered name if it is overridden.
pub struct Attributes {
    /// `.cpu(2.0).retries(5)`.
    pub calls: TokenStream,
    /// `name = "…"`.
    pub name: Option<String>,
    /// `call_retries = 2`.
    pub call_retries: TokenStream,
    /// Where `returns` stands, with or without a number.
    pub returns: Option<Span>,
    /// The value of `group = "…"`.
    pub group: Option<Expr>,
}

struct List(Punctuated<Meta, Token![,]>);

impl Parse for List {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        Punctuated::parse_terminated(input).map(Self)
    }
}

/// The value of each `key = value`.
pub fn pairs(attributes: TokenStream) -> Result<Vec<(String, Expr)>> {
    let List(list) = syn::parse2(attributes)?;
    list.into_iter()
        .map(|meta| match &meta {
            Meta::NameValue(pair) => {
                let key = pair.path.get_ident().map(ToString::to_string).unwrap_or_default();
                Ok((key, pair.value.clone()))
            }
            // A number may follow, or not.
            Meta::Path(path) if path.is_ident("returns") => {
                Ok(("returns".to_owned(), syn::parse_quote_spanned!(path.span()=> true)))
            }
            other => Err(Error::new(other.span(), "write `key = value`, for example `cpu = 2`")),
        })
        .collect()
}

/// Parses the attributes of a task or an actor.
pub fn parse(attributes: TokenStream, allowed: &[&str]) -> Result<Attributes> {
    let mut calls = TokenStream::new();
    let mut name = None;
    let mut call_retries = quote!(0);
    let mut returns = None;
    let mut group = None;
    for (key, value) in pairs(attributes)? {
        if !allowed.contains(&key.as_str()) {
            return Err(Error::new(
                value.span(),
                format!("`{key}` is not known here: use one of {}", allowed.join(", ")),
            ));
        }
        calls.extend(match key.as_str() {
            "cpu" => number(&value, quote!(cpu))?,
            "gpu" => number(&value, quote!(gpu))?,
            "tpu" => number(&value, quote!(tpu))?,
            "memory" => quote!(.memory(#value)),
            "retries" => quote!(.retries(#value)),
            "restarts" => quote!(.restarts(#value)),
            "call_retries" => {
                call_retries = quote!(#value);
                continue;
            }
            "returns" => {
                returns = Some(value.span());
                match &value {
                    Expr::Lit(ExprLit { lit: Lit::Bool(_), .. }) => TokenStream::new(),
                    count => quote!(.returns(#count)),
                }
            }
            "group" => {
                group = Some(value);
                continue;
            }
            "buffer_items" => quote!(.buffer_items(#value)),
            "buffer_bytes" => quote!(.buffer_bytes(#value)),
            "retry_errors" => quote!(.retry_errors(#value)),
            "priority" => quote!(.priority(#value)),
            "isolation" => quote!(.isolation(#value)),
            "timeout_ms" => quote!(.timeout(::core::time::Duration::from_millis(#value))),
            "name" => {
                name = Some(text(&value)?);
                TokenStream::new()
            }
            _ => TokenStream::new(),
        });
    }
    Ok(Attributes { calls, name, call_retries, returns, group })
}

/// A string literal.
pub fn text(value: &Expr) -> Result<String> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Ok(text.value()),
        other => Err(Error::new(other.span(), "write a string, for example \"name\"")),
    }
}

fn number(value: &Expr, call: TokenStream) -> Result<TokenStream> {
    let number: f64 = match value {
        Expr::Lit(ExprLit { lit: Lit::Int(int), .. }) => int.base10_parse()?,
        Expr::Lit(ExprLit { lit: Lit::Float(float), .. }) => float.base10_parse()?,
        other => {
            return Err(Error::new(
                other.span(),
                "write a number that is not negative, for example 2 or 0.5",
            ));
        }
    };
    Ok(quote!(.#call(#number)))
}
