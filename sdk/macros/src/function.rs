//! What tasks, constructors and methods have in common.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::{
    Error, FnArg, GenericArgument, PatType, PathArguments, Result, ReturnType, Signature, Type,
    TypeParamBound, spanned::Spanned,
};

/// A function's parameters and result, as calls need them.
pub struct Parts {
    /// Parameter names: the author's where they are plain, `argument_0` and so on otherwise.
    pub names: Vec<Ident>,
    /// Their types.
    pub types: Vec<Type>,
    /// What a ref to the result is of: the `T` of `Result<T, _>`, or the type itself; of a stream, the type of its
    /// items.
    output: TokenStream,
    /// Whether it returns a `Result`.
    pub fallible: bool,
    gives: Gives,
    /// `(u64, Tensor) -> u64`, for the fingerprint.
    pub signature: String,
}

/// What a call gives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gives {
    One,
    /// The parts of a tuple, an array or a vector, each by itself.
    Several,
    Stream {
        /// `impl Stream` rather than `impl Iterator`.
        is_async: bool,
        /// Whether its items are `Result`s.
        fallible: bool,
    },
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
        let mut gives = Gives::One;
        let (output, fallible) = match &signature.output {
            ReturnType::Default => (quote!(()), false),
            ReturnType::Type(_, ty) => {
                let (inner, fallible) = match result_of(ty) {
                    Some(inner) => (inner, true),
                    None => (&**ty, false),
                };
                if let Some((is_async, item)) = items_of(inner) {
                    let (item, item_fallible) = match result_of(item) {
                        Some(inner) => (inner, true),
                        None => (item, false),
                    };
                    refuse(item, what)?;
                    if signature.asyncness.is_some() && !is_async {
                        return Err(Error::new(
                            inner.span(),
                            "an iterator waits for its reader on a thread, which async code must not: return `impl Stream<Item = T>`, or leave `async` away",
                        ));
                    }
                    gives = Gives::Stream { is_async, fallible: item_fallible };
                    (item.to_token_stream(), fallible)
                } else if let Type::ImplTrait(_) = inner {
                    return Err(Error::new(
                        inner.span(),
                        format!(
                            "a {what} that returns `impl …` gives a stream of items that cross to another process: write `impl Iterator<Item = T>` or, for async code, `impl Stream<Item = T>`"
                        ),
                    ));
                } else {
                    refuse(inner, what)?;
                    (inner.to_token_stream(), fallible)
                }
            }
        };
        let arguments: Vec<String> = types.iter().map(plain).collect();
        let result = match &signature.output {
            ReturnType::Default => "()".to_owned(),
            ReturnType::Type(_, ty) => plain(ty),
        };
        let signature = format!("({}) -> {result}", arguments.join(", "));
        Ok(Self { names, types, output, fallible, gives, signature })
    }

    /// The parts of its result are objects of their own.
    pub fn returns_several(&mut self, at: Span) -> Result<()> {
        if self.gives != Gives::One {
            return Err(Error::new(at, "a stream gives its items one by one: leave `returns` away"));
        }
        self.gives = Gives::Several;
        Ok(())
    }

    /// Refuses a stream.
    pub fn no_stream(&self, at: Span, what: &str) -> Result<()> {
        match self.gives {
            Gives::Stream { .. } => Err(Error::new(at, format!("a {what} cannot return a stream"))),
            Gives::One | Gives::Several => Ok(()),
        }
    }

    /// Whether it gives a stream of async items, so that it runs as async code, whether or not it is an `async fn`.
    pub fn streams_async(&self) -> bool {
        matches!(self.gives, Gives::Stream { is_async: true, .. })
    }

    /// What a call gives at once.
    pub fn handle(&self) -> TokenStream {
        let output = &self.output;
        match self.gives {
            Gives::One => quote!(::mobula::ObjectRef<#output>),
            Gives::Several => quote!(<#output as ::mobula::private::Several>::Refs),
            Gives::Stream { .. } => quote!(::mobula::ObjectStream<#output>),
        }
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
        let (function, wait) = match (self.gives, self.fallible) {
            (Gives::One, true) => return quote!(::mobula::private::finish_result(#call)),
            (Gives::One, false) => (quote!(finish), quote!()),
            (Gives::Several, _) => (quote!(finish_several), quote!()),
            (Gives::Stream { is_async: false, fallible: false }, _) => (quote!(finish_iterator), quote!()),
            (Gives::Stream { is_async: false, fallible: true }, _) => {
                (quote!(finish_iterator_of_results), quote!())
            }
            (Gives::Stream { is_async: true, fallible: false }, _) => (quote!(finish_stream), quote!(.await)),
            (Gives::Stream { is_async: true, fallible: true }, _) => {
                (quote!(finish_stream_of_results), quote!(.await))
            }
        };
        let value = if self.fallible { quote!(::mobula::private::value(#call)?) } else { call.clone() };
        quote!(::mobula::private::#function(#value) #wait)
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

/// Of `impl Iterator<Item = T>` and `impl Stream<Item = T>`: whether it is the second, and `T`.
fn items_of(ty: &Type) -> Option<(bool, &Type)> {
    let Type::ImplTrait(some) = ty else { return None };
    some.bounds.iter().find_map(|bound| {
        let TypeParamBound::Trait(bound) = bound else { return None };
        let last = bound.path.segments.last()?;
        let is_async = match last.ident.to_string().as_str() {
            "Iterator" => false,
            "Stream" => true,
            _ => return None,
        };
        let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
        arguments.args.iter().find_map(|argument| match argument {
            GenericArgument::AssocType(item) if item.ident == "Item" => Some((is_async, &item.ty)),
            _ => None,
        })
    })
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
