//! `#[mobula::data]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Error, Result, spanned::Spanned};

pub fn expand(attributes: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !attributes.is_empty() {
        return Err(Error::new(attributes.span(), "`#[mobula::data]` takes nothing in brackets"));
    }
    let input: DeriveInput = syn::parse2(item)?;
    if let Data::Union(union) = &input.data {
        return Err(Error::new(
            union.union_token.span(),
            "a union cannot cross to another process: use an enum",
        ));
    }
    Ok(quote! {
        #[derive(::mobula::rkyv::Archive, ::mobula::rkyv::Serialize, ::mobula::rkyv::Deserialize)]
        #[rkyv(crate = ::mobula::rkyv)]
        #input
    })
}
