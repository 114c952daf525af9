//! What the compiler says to a program that cannot be.

/// Each program under `tests/ui` is refused with the text beside it.
pub fn the_compiler_refuses_with_a_reason() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
    // It looks when it is dropped, and panics where something differs.
    drop(cases);
    Ok(())
}
