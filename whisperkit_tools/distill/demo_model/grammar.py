"""The closed grammar of the demo's sentences: household commands, numbers, names and days, in English and Spanish.

Every sentence exists in both languages, so that one grammar serves transcription and translation.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ENGLISH_UNITS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
ENGLISH_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
SPANISH_UNITS = _words(
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete "
    "dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete "
    "veintiocho veintinueve"
)
SPANISH_TENS = _words("treinta cuarenta cincuenta sesenta setenta ochenta noventa")

NAMES = _words("Anna David Maria Simon Laura Carlos Elena Victor Clara Martin Julia Oscar Sofia Daniel Emma Hugo")
DAYS = (
    ("Monday", "lunes"),
    ("Tuesday", "martes"),
    ("Wednesday", "miércoles"),
    ("Thursday", "jueves"),
    ("Friday", "viernes"),
    ("Saturday", "sábado"),
    ("Sunday", "domingo"),
)
MONTHS = (
    ("January", "enero"),
    ("February", "febrero"),
    ("March", "marzo"),
    ("April", "abril"),
    ("May", "mayo"),
    ("June", "junio"),
    ("July", "julio"),
    ("August", "agosto"),
    ("September", "septiembre"),
    ("October", "octubre"),
    ("November", "noviembre"),
    ("December", "diciembre"),
)
OBJECTS = (
    ("door", "la puerta"),
    ("window", "la ventana"),
    ("lamp", "la lámpara"),
    ("fan", "el ventilador"),
    ("heater", "el calentador"),
    ("oven", "el horno"),
    ("camera", "la cámara"),
    ("screen", "la pantalla"),
    ("table", "la mesa"),
    ("clock", "el reloj"),
    ("printer", "la impresora"),
    ("bicycle", "la bicicleta"),
)
DEVICES = OBJECTS[2:8]
ROOMS = (
    ("kitchen", "la cocina"),
    ("garden", "el jardín"),
    ("bathroom", "el baño"),
    ("bedroom", "el dormitorio"),
    ("office", "la oficina"),
    ("garage", "el garaje"),
    ("hall", "el pasillo"),
    ("library", "la biblioteca"),
)
# English, Spanish imperative, Spanish future.
VERBS = (
    ("open", "abre", "abrirá"),
    ("close", "cierra", "cerrará"),
    ("clean", "limpia", "limpiará"),
    ("check", "revisa", "revisará"),
    ("paint", "pinta", "pintará"),
    ("move", "mueve", "moverá"),
    ("repair", "repara", "reparará"),
)
FOODS = (
    ("apples", "manzanas"),
    ("eggs", "huevos"),
    ("lemons", "limones"),
    ("tomatoes", "tomates"),
    ("oranges", "naranjas"),
    ("onions", "cebollas"),
    ("potatoes", "patatas"),
    ("bananas", "plátanos"),
)
# English, Spanish masculine, Spanish feminine.
STATES = (
    ("open", "abierto", "abierta"),
    ("dirty", "sucio", "sucia"),
    ("broken", "roto", "rota"),
    ("ready", "listo", "lista"),
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence in both languages."""

    english: str
    spanish: str

    def text(self, language: str) -> str:
        """Return the sentence in `language`, "en" or "es"."""
        return self.english if language == "en" else self.spanish


def english_number(number: int) -> str:
    """Return the words of `number`, 0 to 99: 42 -> "forty two"."""
    if number < len(ENGLISH_UNITS):
        return ENGLISH_UNITS[number]
    tens = ENGLISH_TENS[number // 10 - 2]
    return tens if number % 10 == 0 else f"{tens} {ENGLISH_UNITS[number % 10]}"


def spanish_number(number: int) -> str:
    """Return the words of `number`, 0 to 99: 42 -> "cuarenta y dos"."""
    if number < len(SPANISH_UNITS):
        return SPANISH_UNITS[number]
    tens = SPANISH_TENS[number // 10 - 3]
    return tens if number % 10 == 0 else f"{tens} y {SPANISH_UNITS[number % 10]}"


def _quantity(rng: random.Random, limit: int = 99) -> tuple[str, str]:
    """Return a number from 2 to `limit` that does not end in one, which Spanish would inflect for gender."""
    number = rng.choice([value for value in range(2, limit + 1) if value % 10 != 1 or value == 11])
    return english_number(number), spanish_number(number)


def _hour(rng: random.Random) -> tuple[str, str]:
    """Return an hour of the clock with its Spanish article: ("two", "las dos")."""
    hour = rng.randint(1, 12)
    return english_number(hour), "la una" if hour == 1 else f"las {spanish_number(hour)}"


def _price(rng: random.Random) -> Sentence:
    (thing, cosa), (number, cifra) = rng.choice(OBJECTS), _quantity(rng)
    return Sentence(f"The {thing} costs {number} dollars.", f"{cosa.capitalize()} cuesta {cifra} dólares.")


def _call(rng: random.Random) -> Sentence:
    name, (day, dia), (hour, hora) = rng.choice(NAMES), rng.choice(DAYS), _hour(rng)
    return Sentence(f"Call {name} on {day} at {hour}.", f"Llama a {name} el {dia} a {hora}.")


def _plan(rng: random.Random) -> Sentence:
    name, verb, (thing, cosa), (day, dia) = rng.choice(NAMES), rng.choice(VERBS), rng.choice(OBJECTS), rng.choice(DAYS)
    return Sentence(f"{name} will {verb[0]} the {thing} on {day}.", f"{name} {verb[2]} {cosa} el {dia}.")


def _request(rng: random.Random) -> Sentence:
    verb, (thing, cosa), (day, dia) = rng.choice(VERBS), rng.choice(OBJECTS + ROOMS), rng.choice(DAYS)
    return Sentence(f"Please {verb[0]} the {thing} before {day}.", f"Por favor {verb[1]} {cosa} antes del {dia}.")


def _timer(rng: random.Random) -> Sentence:
    number, cifra = _quantity(rng)
    return Sentence(f"Set a timer for {number} minutes.", f"Pon un temporizador de {cifra} minutos.")


def _number(rng: random.Random) -> Sentence:
    first, second = rng.randint(1, 99), rng.randint(1, 99)
    return Sentence(
        f"The number is {english_number(first)} {english_number(second)}.",
        f"El número es {spanish_number(first)} {spanish_number(second)}.",
    )


def _switch(rng: random.Random) -> Sentence:
    (state, verb), (thing, cosa), (room, sala) = (
        rng.choice((("on", "Enciende"), ("off", "Apaga"))),
        rng.choice(DEVICES),
        rng.choice(ROOMS),
    )
    return Sentence(f"Turn {state} the {thing} in the {room}.", f"{verb} {cosa} en {sala}.")


def _where(rng: random.Random) -> Sentence:
    (thing, cosa), (room, sala) = rng.choice(OBJECTS), rng.choice(ROOMS)
    return Sentence(f"Is the {thing} in the {room}?", f"¿Está {cosa} en {sala}?")


def _train(rng: random.Random) -> Sentence:
    (hour, hora), (minutes, minutos) = _hour(rng), _quantity(rng, 59)
    return Sentence(f"The train leaves at {hour} {minutes}.", f"El tren sale a {hora} {minutos}.")


def _shopping(rng: random.Random) -> Sentence:
    (number, cifra), (food, comida) = _quantity(rng), rng.choice(FOODS)
    return Sentence(f"Add {number} {food} to the list.", f"Añade {cifra} {comida} a la lista.")


def _birthday(rng: random.Random) -> Sentence:
    name, (month, mes) = rng.choice(NAMES), rng.choice(MONTHS)
    return Sentence(f"The birthday of {name} is in {month}.", f"El cumpleaños de {name} es en {mes}.")


def _degrees(rng: random.Random) -> Sentence:
    (number, cifra), (room, sala) = _quantity(rng), rng.choice(ROOMS)
    return Sentence(f"It is {number} degrees in the {room}.", f"Hace {cifra} grados en {sala}.")


def _tell(rng: random.Random) -> Sentence:
    name, (thing, cosa), state = rng.choice(NAMES), rng.choice(OBJECTS), rng.choice(STATES)
    adjective = state[2] if cosa.startswith("la ") else state[1]
    return Sentence(f"Tell {name} that the {thing} is {state[0]}.", f"Dile a {name} que {cosa} está {adjective}.")


TEMPLATES: tuple[Callable[[random.Random], Sentence], ...] = (
    _price,
    _call,
    _plan,
    _request,
    _timer,
    _number,
    _switch,
    _where,
    _train,
    _shopping,
    _birthday,
    _degrees,
    _tell,
)


def draw_sentences(count: int, seed: int, excluded: frozenset[Sentence] = frozenset()) -> list[Sentence]:
    """Draw `count` sentences, each template equally often. Repeats are allowed.

    Args:
        count: How many.
        seed: Seeds the draw.
        excluded: Sentences never drawn, so that held-out sentences stay unseen in training.
    """
    rng = random.Random(seed)
    sentences: list[Sentence] = []
    while len(sentences) < count:
        sentence = TEMPLATES[len(sentences) % len(TEMPLATES)](rng)
        if sentence not in excluded:
            sentences.append(sentence)
    return sentences


def draw_held_out(count: int, seed: int) -> list[Sentence]:
    """Draw `count` different sentences for the held-out set."""
    unique = list(dict.fromkeys(draw_sentences(count * 4, seed)))
    rng = random.Random(seed)
    # Stratified by template above; the shuffle only breaks their fixed order.
    chosen = unique[:count]
    rng.shuffle(chosen)
    return chosen
