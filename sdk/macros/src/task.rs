//! `#[mobula::task]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Error, FnArg, ItemFn, Result, spanned::Spanned};

use crate::{
    function::{Parts, invocation, register},
    options,
};

const ALLOWED: [&str; 13] = [
    "cpu",
    "gpu",
    "tpu",
    "memory",
    "retries",
    "retry_errors",
    "priority",
    "isolation",
    "timeout_ms",
    "name",
    "returns",
    "buffer_items",
    "buffer_bytes",
];

pub fn expand(attributes: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let function: ItemFn = syn::parse2(item)?;
    let attributes = options::parse(attributes, &ALLOWED)?;
    if let Some(FnArg::Receiver(receiver)) = function.sig.inputs.first() {
        return Err(Error::new(receiver.span(), "a task has no `self`: make the type an actor"));
    }
    let mut parts = Parts::new(&function.sig, "task")?;
    if let Some(at) = attributes.returns {
        parts.returns_several(at)?;
    }
    let (name, visibility) = (&function.sig.ident, &function.vis);
    let is_async = function.sig.asyncness.is_some();
    let mut local = function.clone();
    local.vis = syn::parse_quote!(pub);
    local.sig.ident = format_ident!("call");
    let documentation: Vec<_> = function.attrs.iter().filter(|a| a.path().is_ident("doc")).cloned().collect();
    local.attrs.retain(|a| !a.path().is_ident("doc"));
    let (names, handle, calls) = (&parts.names, parts.handle(), &attributes.calls);
    let types = &parts.types;
    let takes = parts.takes();
    let wait = if is_async { quote!(.await) } else { quote!() };
    let finish = parts.finish(&quote!(#name::call(#(#names),*) #wait));
    let runs_async = is_async || parts.streams_async();
    let run = invocation(runs_async, &quote!(#takes #finish));
    let registered = match &attributes.name {
        Some(text) => quote!(#text),
        None => {
            let text = name.to_string();
            quote!(::core::concat!(::core::module_path!(), "::", #text))
        }
    };
    let constant = format_ident!("FUNCTION");
    let registration = register(
        &constant,
        &registered,
        &parts.signature,
        runs_async,
        &quote!(::mobula::private::Entry::Task(run)),
    );
    let (parameters, arguments) = (parts.parameters(), parts.arguments());
    let with_options = format_ident!("{}_with_options", name);
    let local_fn = {
        let asyncness = &function.sig.asyncness;
        let result = &function.sig.output;
        quote! {
            /// Calls the function right here.
            #[allow(dead_code, missing_docs, clippy::too_many_arguments)]
            pub #asyncness fn local(&self #(, #names: #types)*) #result {
                Self::call(#(#names),*) #wait
            }
        }
    };
    let mut body = local;
    body.attrs.push(syn::parse_quote!(#[allow(clippy::too_many_arguments, missing_docs)]));
    Ok(quote! {
        #(#documentation)*
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug)]
        #visibility struct #name;

        #[doc(hidden)]
        #[allow(non_camel_case_types)]
        #[derive(Clone, Debug)]
        #visibility struct #with_options(::mobula::Options);

        impl #name {
            #body
            #local_fn

            /// Submits it, and gives a ref to its result, or a stream of its items, at once.
            #[allow(dead_code, clippy::too_many_arguments)]
            pub fn remote(&self, #parameters) -> #handle {
                self.options().remote(#(#names),*)
            }

            /// Submits it unless the budget of unfinished calls is full; then the call comes back.
            #[allow(dead_code, clippy::too_many_arguments)]
            pub fn try_remote(
                &self,
                #parameters
            ) -> ::core::result::Result<#handle, ::mobula::Refused<#handle>> {
                self.options().try_remote(#(#names),*)
            }

            /// Submits it as soon as the budget of unfinished calls allows; for async code.
            #[allow(dead_code, clippy::too_many_arguments)]
            pub fn submit(
                &self,
                #parameters
            ) -> ::mobula::Submission<#handle> {
                self.options().submit(#(#names),*)
            }

            /// Changes how it runs, for one call site.
            pub fn options(&self) -> #with_options {
                static OPTIONS: ::std::sync::OnceLock<::mobula::Options> = ::std::sync::OnceLock::new();
                #with_options(OPTIONS.get_or_init(|| ::mobula::Options::task() #calls).clone())
            }
        }

        impl #with_options {
            ::mobula::__option_methods!();

            /// Submits it, and gives a ref to its result, or a stream of its items, at once.
            #[allow(dead_code, clippy::too_many_arguments)]
            pub fn remote(&self, #parameters) -> #handle {
                ::mobula::private::Call::<#handle>::new(Self::function(), self.0.clone()) #arguments .submit()
            }

            /// Submits it unless the budget of unfinished calls is full; then the call comes back.
            #[allow(dead_code, clippy::too_many_arguments)]
            pub fn try_remote(
                &self,
                #parameters
            ) -> ::core::result::Result<#handle, ::mobula::Refused<#handle>> {
                ::mobula::private::Call::<#handle>::new(Self::function(), self.0.clone()) #arguments .try_submit()
            }

            /// Submits it as soon as the budget of unfinished calls allows; for async code.
            #[allow(dead_code, clippy::too_many_arguments)]
            pub fn submit(
                &self,
                #parameters
            ) -> ::mobula::Submission<#handle> {
                ::mobula::private::Call::<#handle>::new(Self::function(), self.0.clone()) #arguments .submit_later()
            }

            fn function() -> &'static ::mobula::private::Function {
                fn run(
                    #[allow(unused_mut, unused_variables)] mut arguments: ::mobula::private::Arguments,
                ) -> ::mobula::private::Invocation<::mobula::private::Results> {
                    #run
                }
                #registration
                &#constant
            }
        }
    })
}
