//! `#[mobula::main]` and `#[mobula::test]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Error, ItemFn, Result, spanned::Spanned};

use crate::options;

fn check(function: &ItemFn) -> Result<bool> {
    if function.sig.asyncness.is_none() {
        return Err(Error::new(function.sig.fn_token.span(), "write `async fn`"));
    }
    match function.sig.inputs.len() {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::new(function.sig.inputs.span(), "it takes a `Cluster`, or nothing")),
    }
}

pub fn expand_main(attributes: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if let Some((key, value)) = options::pairs(attributes)?.first() {
        return Err(Error::new(
            value.span(),
            format!("`{key}` is not known here: `#[mobula::main]` takes nothing"),
        ));
    }
    let function: ItemFn = syn::parse2(item)?;
    let wants_cluster = check(&function)?;
    let name = &function.sig.ident;
    let mut body = function.clone();
    body.sig.ident = format_ident!("author_main");
    let call = if wants_cluster {
        quote!(::mobula::private::run_main(true, |cluster| async move {
            match cluster {
                ::core::option::Option::Some(cluster) => {
                    ::mobula::private::Outcome::of(author_main(cluster).await)
                }
                ::core::option::Option::None => ::mobula::private::Outcome::of(()),
            }
        }))
    } else {
        quote!(::mobula::private::run_main(false, |_| async move {
            ::mobula::private::Outcome::of(author_main().await)
        }))
    };
    Ok(quote! {
        fn #name() -> ::std::process::ExitCode {
            #body
            #call
        }
    })
}

pub fn expand_test(attributes: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let mut nodes = quote!(0);
    let mut cpus = quote!(2);
    for (key, value) in options::pairs(attributes)? {
        match key.as_str() {
            "nodes" => nodes = quote!(#value),
            "cpus" => cpus = quote!(#value),
            other => {
                return Err(Error::new(
                    value.span(),
                    format!("`{other}` is not known here: use nodes, cpus"),
                ));
            }
        }
    }
    let function: ItemFn = syn::parse2(item)?;
    let wants_cluster = check(&function)?;
    let name = &function.sig.ident;
    let attributes = &function.attrs;
    let mut body = function.clone();
    body.sig.ident = format_ident!("author_test");
    body.attrs.clear();
    let argument = if wants_cluster { quote!(cluster.clone()) } else { quote!() };
    Ok(quote! {
        #[test]
        #(#attributes)*
        fn #name() {
            #body
            let name = ::core::concat!(::core::module_path!(), "::", ::core::stringify!(#name));
            ::mobula::private::run_test(name, #nodes, #cpus, |cluster| async move {
                ::mobula::private::Outcome::of(author_test(#argument).await)
            });
        }
    })
}
