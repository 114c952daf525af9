//! What tasks, constructors and methods have in common.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::{
    Error, FnArg, GenericArgument, PatType, PathArguments, Result, ReturnType, Signature, Type,
    spanned::Spanned,
};

/// A function's parameters and result, as calls need them.
pub struct Parts {
    /// Parameter names: the author's where they are plain, `argument_0` and so on otherwise.
    pub names: Vec<Ident>,
    /// Their types.
    pub types: Vec<Type>,
    /// What a ref to the result is of: the `T` of `Result<T, _>`, or the type itself.
    pub output: TokenStream,
    /// Whether it returns a `Result`.
    pub fallible: bool,
    /// `(u64, Tensor) -> u64`, for the fingerprint.
    pub signature: String,
}

impl Parts {
    /// Takes a signature apart, and refuses what cannot be called remotely.
    pub fn new(signature: &Signature, what: &str) -> Result<Self> {
        if let Some(parameter) = signature.generics.type_params().next() {
            return Err(Error::new(
                parameter.span(),
                format!(
                    "a generic {what} has no code of its own that could be found by name: write one that calls the generic function with a concrete type"
                ),
            ));
        }
        if let Some(variadic) = &signature.variadic {
            return Err(Error::new(variadic.span(), format!("a {what} cannot be variadic")));
        }
        let mut names = Vec::new();
        let mut types = Vec::new();
        for (at, input) in signature.inputs.iter().enumerate() {
            let FnArg::Typed(PatType { pat, ty, .. }) = input else { continue };
            refuse(ty, what)?;
            names.push(match &**pat {
                syn::Pat::Ident(name) => Ident::new(&name.ident.to_string(), Span::call_site()),
                _ => format_ident!("argument_{at}"),
            });
            types.push((**ty).clone());
        }
        let (output, fallible) = match &signature.output {
            ReturnType::Default => (quote!(()), false),
            ReturnType::Type(_, ty) => {
                refuse(ty, what)?;
                match result_of(ty) {
                    Some(inner) => (inner.to_token_stream(), true),
                    None => (ty.to_token_stream(), false),
                }
            }
        };
        let arguments: Vec<String> = types.iter().map(plain).collect();
        let result = match &signature.output {
            ReturnType::Default => "()".to_owned(),
            ReturnType::Type(_, ty) => plain(ty),
        };
        let signature = format!("({}) -> {result}", arguments.join(", "));
        Ok(Self { names, types, output, fallible, signature })
    }

    /// Takes the arguments out of `arguments`, one `let` each.
    pub fn takes(&self) -> TokenStream {
        let takes = self.names.iter().zip(&self.types).map(|(name, ty)| {
            if let Some(element) = element_of(ty) {
                quote!(let #name: #ty = ::mobula::private::take_list::<#element>(&mut arguments)?;)
            } else {
                quote!(let #name = <#ty as ::mobula::private::FromArgument>::take(&mut arguments)?;)
            }
        });
        quote!(#(#takes)*)
    }

    /// `x: impl IntoArgument<u64>, …`.
    pub fn parameters(&self) -> TokenStream {
        let (names, types) = (&self.names, &self.types);
        quote!(#(#names: impl ::mobula::IntoArgument<#types>),*)
    }

    /// `.argument::<u64>(x)…`.
    pub fn arguments(&self) -> TokenStream {
        let (names, types) = (&self.names, &self.types);
        quote!(#(.argument::<#types>(#names))*)
    }

    /// Encodes the result of `call`.
    pub fn finish(&self, call: &TokenStream) -> TokenStream {
        if self.fallible {
            quote!(::mobula::private::finish_result(#call))
        } else {
            quote!(::mobula::private::finish(#call))
        }
    }
}

/// Wraps a body that takes its arguments and ends in a `Result`.
pub fn invocation(is_async: bool, body: &TokenStream) -> TokenStream {
    if is_async {
        quote!(::mobula::private::Invocation::Future(::std::boxed::Box::pin(async move { #body })))
    } else {
        quote!(::mobula::private::Invocation::Finished((move || { #body })()))
    }
}

/// A static that registers a function.
pub fn register(
    constant: &Ident,
    name: &TokenStream,
    signature: &str,
    is_async: bool,
    entry: &TokenStream,
) -> TokenStream {
    quote! {
        #[::mobula::private::linkme::distributed_slice(::mobula::private::FUNCTIONS)]
        #[linkme(crate = ::mobula::private::linkme)]
        static #constant: ::mobula::private::Function = ::mobula::private::Function {
            name: #name,
            signature: #signature,
            file: ::core::file!(),
            line: ::core::line!(),
            is_async: #is_async,
            entry: #entry,
            id: ::std::sync::OnceLock::new(),
            nanos: ::core::sync::atomic::AtomicU64::new(0),
        };
    }
}

fn refuse(ty: &Type, what: &str) -> Result<()> {
    match ty {
        Type::Reference(_) => Err(Error::new(
            ty.span(),
            format!(
                "a {what} cannot take or return a reference: its caller may be on another machine; take the value, or `View<T>` to read a large one in place"
            ),
        )),
        Type::ImplTrait(_) => Err(Error::new(
            ty.span(),
            format!(
                "a {what} needs concrete types: closures and `impl Trait` cannot cross to another process; name a type that is `#[mobula::data]`"
            ),
        )),
        Type::TraitObject(_) => Err(Error::new(
            ty.span(),
            format!("a {what} cannot take or return a trait object: use an enum that is `#[mobula::data]`"),
        )),
        _ => Ok(()),
    }
}

fn plain(ty: &Type) -> String {
    ty.to_token_stream().to_string().replace(' ', "")
}

fn single_argument<'a>(ty: &'a Type, name: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last().filter(|segment| segment.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    })
}

fn result_of(ty: &Type) -> Option<&Type> {
    single_argument(ty, "Result")
}

fn element_of(ty: &Type) -> Option<&Type> {
    single_argument(ty, "Vec")
}
