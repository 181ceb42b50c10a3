"""Keywords of the eight languages, which CodeBLEU's weighted n-grams count fully.

For Python, Java and C# they are those of the official evaluator (Python 3.7; Java 8; C# with its contextual words up to
C# 8). It has none for the others; there they are the reserved words of the language's definition.
"""

from __future__ import annotations

_WORDS = {
    # The Python Language Reference 2.3.1.
    "python": """False None True and as assert async await break class continue def del elif else except finally for
        from global if import in is lambda nonlocal not or pass raise return try while with yield""",
    # The Java Language Specification 3.9, without `_`.
    "java": """abstract assert boolean break byte case catch char class const continue default do double else enum
        extends final finally float for goto if implements import instanceof int interface long native new package
        private protected public return short static strictfp super switch synchronized this throw throws transient try
        void volatile while""",
    # ISO/IEC 9899:2018 6.4.1.
    "c": """auto break case char const continue default do double else enum extern float for goto if inline int long
        register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
        _Alignas _Alignof _Atomic _Bool _Complex _Generic _Imaginary _Noreturn _Static_assert _Thread_local""",
    # The C# language reference, keywords and contextual keywords.
    "c_sharp": """abstract as base bool break byte case catch char checked class const continue decimal default delegate
        do double else enum event explicit extern false finally fixed float for foreach goto if implicit in int
        interface internal is lock long namespace new null object operator out override params private protected public
        readonly ref return sbyte sealed short sizeof stackalloc static string struct switch this throw true try typeof
        uint ulong unchecked unsafe ushort using virtual void volatile while add alias ascending async await by
        descending dynamic equals from get global group into join let nameof notnull on orderby partial remove select
        set unmanaged value var when where yield""",
    # ECMA-262 12.7.2, reserved words, with those reserved in strict mode.
    "javascript": """await break case catch class const continue debugger default delete do else enum export extends
        false finally for function if import in instanceof new null return super switch this throw true try typeof var
        void while with yield let static implements interface package private protected public""",
    # The Go Programming Language Specification, keywords.
    "go": """break case chan const continue default defer else fallthrough for func go goto if import interface map
        package range return select struct switch type var""",
    # Ruby's documentation, keywords.
    "ruby": """__ENCODING__ __LINE__ __FILE__ BEGIN END alias and begin break case class def defined? do else elsif end
        ensure false for if in module next nil not or redo rescue retry return self super then true undef unless until
        when while yield""",
    # The PHP manual, list of keywords.
    "php": """__halt_compiler abstract and array as break callable case catch class clone const continue declare default
        die do echo else elseif empty enddeclare endfor endforeach endif endswitch endwhile eval exit extends final
        finally fn for foreach function global goto if implements include include_once instanceof insteadof interface
        isset list match namespace new or print private protected public readonly require require_once return static
        switch throw trait try unset use var while xor yield""",
}
KEYWORDS: dict[str, frozenset[str]] = {language: frozenset(words.split()) for language, words in _WORDS.items()}
