//! `#[mobula::actor]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Error, FnArg, ImplItem, ImplItemFn, ItemImpl, Receiver, ReceiverKind, Result, Type, spanned::Spanned,
};

use crate::{
    function::{Parts, invocation, register},
    limits::{self, Limits},
    options,
};

const ALLOWED: [&str; 9] =
    ["cpu", "gpu", "tpu", "memory", "restarts", "call_retries", "priority", "isolation", "name"];
const METHOD_ALLOWED: [&str; 4] = ["returns", "buffer_items", "buffer_bytes", "group"];

pub fn expand(attributes: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let mut block: ItemImpl = syn::parse2(item)?;
    let (limits, attributes) = limits::take(attributes)?;
    let attributes = options::parse(attributes, &ALLOWED)?;
    if let Some((path, _)) = &block.trait_ {
        return Err(Error::new(path.span(), "put `#[mobula::actor]` on the type's own `impl` block"));
    }
    if let Some(parameter) = block.generics.params.first() {
        return Err(Error::new(
            parameter.span(),
            "a generic actor has no code of its own that could be found by name: wrap it in a concrete type",
        ));
    }
    let Type::Path(path) = &*block.self_ty else {
        return Err(Error::new(block.self_ty.span(), "an actor is a struct or enum with a name"));
    };
    let actor = path
        .path
        .segments
        .last()
        .map(|segment| segment.ident.clone())
        .ok_or_else(|| Error::new(path.span(), "an actor is a struct or enum with a name"))?;
    let handle = format_ident!("{}Handle", actor);
    let actor_name = match &attributes.name {
        Some(text) => quote!(#text),
        None => {
            let text = actor.to_string();
            quote!(::core::concat!(::core::module_path!(), "::", #text))
        }
    };

    let mut constructor = None;
    let mut methods = Vec::new();
    for item in &mut block.items {
        let ImplItem::Fn(function) = item else { continue };
        let before = function.attrs.len();
        function.attrs.retain(|attribute| !attribute.path().is_ident("local"));
        if function.attrs.len() != before {
            continue;
        }
        let setting = take_setting(function)?;
        if function.sig.ident == "new" {
            constructor = Some(function.clone());
        } else if let Some(FnArg::Receiver(receiver)) = function.sig.inputs.first() {
            if !matches!(receiver.kind, ReceiverKind::Reference(..)) {
                return Err(Error::new(receiver.span(), "an actor's method takes `&self` or `&mut self`"));
            }
            let group = limits.group_of(setting.group.as_ref(), is_exclusive(function))?;
            methods.push((function.clone(), group, setting));
        }
    }
    let constructor = constructor.ok_or_else(|| {
        Error::new(
            block.self_ty.span(),
            "an actor needs a constructor: `fn new(…) -> Self` (it may be async, and may return a `Result`)",
        )
    })?;
    let shares = methods.iter().any(|(method, ..)| !is_exclusive(method));
    let cell = if shares { quote!(::mobula::private::Shared) } else { quote!(::mobula::private::Exclusive) };
    let spawn =
        expand_constructor(&constructor, &actor, &limits.rules, &cell, &actor_name, &attributes.calls)?;
    let calls = methods
        .iter()
        .map(|(method, group, setting)| {
            let place = Place { group: *group, limits: &limits, shares };
            expand_method(method, setting, &actor, &cell, &place, &actor_name, &attributes.call_retries)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(quote! {
        #[allow(dead_code)]
        #block

        #[allow(missing_docs)]
        impl #actor {
            #spawn
        }

        /// A handle to the actor; calls give refs to their results.
        #[derive(Clone, Debug, ::mobula::rkyv::Archive, ::mobula::rkyv::Serialize, ::mobula::rkyv::Deserialize)]
        #[rkyv(crate = ::mobula::rkyv)]
        #[allow(missing_docs)]
        pub struct #handle(::mobula::ActorHandle);

        impl ::core::convert::From<::mobula::ActorHandle> for #handle {
            fn from(handle: ::mobula::ActorHandle) -> Self {
                Self(handle)
            }
        }

        impl ::core::ops::Deref for #handle {
            type Target = ::mobula::ActorHandle;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }

        impl ::mobula::private::Actor for #actor {
            type Handle = #handle;
            const NAME: &'static str = #actor_name;
        }

        #[allow(dead_code, missing_docs)]
        impl #handle {
            /// The same actor through a handle whose calls have other options: those that concern a call, such as
            /// `returns`, `buffer_items`, `buffer_bytes`, `timeout` and `retries`.
            pub fn with_options(
                &self,
                change: impl ::core::ops::Fn(::mobula::Options) -> ::mobula::Options
                    + ::core::marker::Send
                    + ::core::marker::Sync
                    + 'static,
            ) -> Self {
                Self(self.0.with_options(change))
            }

            #(#calls)*
        }
    })
}

/// What `#[method(…)]` says of a method.
fn take_setting(function: &mut ImplItemFn) -> Result<options::Attributes> {
    let at = function.attrs.iter().position(|attribute| attribute.path().is_ident("method"));
    let tokens = match at.map(|at| function.attrs.remove(at).meta) {
        None => TokenStream::new(),
        Some(syn::Meta::List(list)) => list.tokens,
        Some(other) => return Err(Error::new(other.span(), "write `#[method(…)]`, with settings in it")),
    };
    options::parse(tokens, &METHOD_ALLOWED)
}

fn is_exclusive(method: &ImplItemFn) -> bool {
    matches!(
        method.sig.inputs.first(),
        Some(FnArg::Receiver(Receiver { kind: ReceiverKind::Reference(_, _, Some(_)), .. }))
    )
}

fn expand_constructor(
    function: &ImplItemFn,
    actor: &syn::Ident,
    rules: &TokenStream,
    cell: &TokenStream,
    actor_name: &TokenStream,
    calls: &TokenStream,
) -> Result<TokenStream> {
    let parts = Parts::new(&function.sig, "constructor")?;
    parts.no_stream(function.sig.output.span(), "constructor")?;
    let is_async = function.sig.asyncness.is_some();
    let names = &parts.names;
    let takes = parts.takes();
    let wait = if is_async { quote!(.await) } else { quote!() };
    let made = quote!(#actor::new(#(#names),*) #wait);
    let made = if parts.fallible {
        quote!(match #made {
            ::core::result::Result::Ok(value) => value,
            ::core::result::Result::Err(error) => return ::core::result::Result::Err(::mobula::private::returned(error)),
        })
    } else {
        made
    };
    let run = invocation(
        is_async,
        &quote!(#takes let value: #actor = #made; ::core::result::Result::Ok(#cell::state(value))),
    );
    let constant = format_ident!("FUNCTION");
    let registration = register(
        &constant,
        actor_name,
        &parts.signature,
        is_async,
        &quote!(::mobula::private::Entry::Construct { call: run, rules: #rules }),
    );
    let (parameters, arguments) = (parts.parameters(), parts.arguments());
    let visibility = quote!(pub);
    Ok(quote! {
        /// Makes one as an actor somewhere: set options, then await it for a handle.
        #[allow(dead_code, clippy::too_many_arguments)]
        #visibility fn spawn(#parameters) -> ::mobula::Spawn<#actor> {
            fn run(
                #[allow(unused_mut, unused_variables)] mut arguments: ::mobula::private::Arguments,
            ) -> ::mobula::private::Invocation<::mobula::private::ActorState> {
                #run
            }
            #registration
            ::mobula::Spawn::<#actor>::new(&#constant, ::mobula::Options::actor() #calls) #arguments
        }
    })
}

/// What a method's calls share with those of others.
struct Place<'a> {
    group: u16,
    limits: &'a Limits,
    /// Whether the actor has `&self` methods.
    shares: bool,
}

fn expand_method(
    function: &ImplItemFn,
    setting: &options::Attributes,
    actor: &syn::Ident,
    cell: &TokenStream,
    place: &Place<'_>,
    actor_name: &TokenStream,
    call_retries: &TokenStream,
) -> Result<TokenStream> {
    let mut parts = Parts::new(&function.sig, "method")?;
    if let Some(at) = setting.returns {
        parts.returns_several(at)?;
    }
    let (name, names, handle, calls) = (&function.sig.ident, &parts.names, parts.handle(), &setting.calls);
    let is_async = function.sig.asyncness.is_some() || parts.streams_async();
    let exclusive = is_exclusive(function);
    let takes = parts.takes();
    let wait = if function.sig.asyncness.is_some() { quote!(.await) } else { quote!() };
    let (guard, this) = match (place.shares, exclusive, is_async) {
        (true, true, true) => (quote!(let mut guard = cell.0.write().await;), quote!(&mut *guard)),
        (true, true, false) => (
            quote!(let mut guard = cell.0.try_write().map_err(|_| ::mobula::private::busy())?;),
            quote!(&mut *guard),
        ),
        (true, false, true) => (quote!(let guard = cell.0.read().await;), quote!(&*guard)),
        (true, false, false) => {
            (quote!(let guard = cell.0.try_read().map_err(|_| ::mobula::private::busy())?;), quote!(&*guard))
        }
        (false, _, true) => (quote!(let mut guard = cell.0.lock().await;), quote!(&mut *guard)),
        (false, _, false) => (
            quote!(let mut guard = cell.0.try_lock().map_err(|_| ::mobula::private::busy())?;),
            quote!(&mut *guard),
        ),
    };
    let finish = parts.finish(&quote!(#actor::#name(#this #(, #names)*) #wait));
    let run = invocation(is_async, &quote!(let cell = cell?; #takes #guard #finish));
    let (group, unordered) = (place.group, place.limits.unordered);
    let constant = format_ident!("FUNCTION");
    let text = name.to_string();
    let registered = quote!(::core::concat!(#actor_name, "::", #text));
    // `concat!` takes literals only, and the actor's name may be a `concat!` itself.
    let registration = register(
        &constant,
        &registered,
        &parts.signature,
        is_async,
        &quote!(::mobula::private::Entry::Method {
            call: run,
            exclusive: #exclusive,
            group: #group,
            unordered: #unordered,
        }),
    );
    let (parameters, arguments) = (parts.parameters(), parts.arguments());
    let documentation = function.attrs.iter().filter(|attribute| attribute.path().is_ident("doc"));
    Ok(quote! {
        #(#documentation)*
        #[allow(clippy::too_many_arguments)]
        pub fn #name(&self, #parameters) -> #handle {
            fn run(
                state: &::mobula::private::ActorState,
                #[allow(unused_mut, unused_variables)] mut arguments: ::mobula::private::Arguments,
            ) -> ::mobula::private::Invocation<::mobula::private::Results> {
                let cell = #cell::<#actor>::of(state);
                #run
            }
            #registration
            static OPTIONS: ::std::sync::OnceLock<::mobula::Options> = ::std::sync::OnceLock::new();
            let options = OPTIONS.get_or_init(|| ::mobula::Options::method(#call_retries) #calls);
            self.0.call::<#handle>(&#constant, options.clone()) #arguments .submit()
        }
    })
}
