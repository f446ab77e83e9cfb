"""Messages that are not about a drawn scene: greetings, and questions beyond the model.

Every eighth template is held out for evaluation, so that refusals are measured on wordings that
training never contains.
"""

import random
import string

HELLO = "Hello! Show me a drawn scene and ask me about it."
ABLE = (
    "I can say what is in a drawn scene: colours, shapes, sizes, places, numbers and short writing."
)
WHO = "I am a small model that talks about simple drawn scenes."
GREETINGS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("hi", "hello", "hey", "hello there", "hi there", "good morning", "good evening", "hey you",
         "hallo", "good afternoon", "hi!", "greetings", "yo", "hello!", "hiya"),
        HELLO,
    ),
    (
        ("thanks", "thank you", "thanks a lot", "thank you very much", "thx", "many thanks",
         "great, thanks", "ok thanks", "cheers", "thank you!"),
        "You are welcome.",
    ),
    (
        ("bye", "goodbye", "bye bye", "see you", "see you later", "good night", "cya", "farewell"),
        "Goodbye!",
    ),
    (
        ("how are you", "how are you?", "how are you doing?", "how is it going?", "are you well?",
         "how do you do?", "what's up?"),
        "I am fine, thank you.",
    ),
    (
        ("who are you", "who are you?", "what are you?", "what is your name?", "are you a robot?",
         "what's your name?", "which model are you?", "are you an ai?", "tell me about yourself"),
        WHO,
    ),
    (
        ("what can you do", "what can you do?", "help", "help me", "how can you help me?",
         "what can i ask?", "what can i ask you?", "what do you know?", "how does this work?",
         "what are you good at?", "what should i ask?"),
        ABLE,
    ),
    (
        ("good job", "well done", "nice", "great", "very good", "cool", "that's right", "perfect",
         "correct", "good", "awesome"),
        "Thank you!",
    ),
)  # fmt: skip


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SLOTS: dict[str, tuple[str, ...]] = {
    "animal": _words("dog cat horse bird cow elephant lion rabbit fish snake bear wolf duck"),
    "object": _words("car house tree table chair bottle phone laptop bicycle boat train shirt hat lamp clock cup "
        "window door bridge flower shoe bag mountain road plate camera knife building"),
    "person": _words("man woman child girl boy baby person teacher doctor king player singer soldier"),
    "who": (
        "Einstein", "Napoleon", "Mozart", "Shakespeare", "Cleopatra", "Newton", "Picasso",
        "Lincoln", "Gandhi", "Beethoven", "Darwin", "Marie Curie", "Plato", "my neighbour",
    ),
    "place": (
        "France", "Japan", "Brazil", "Berlin", "London", "Paris", "India", "Canada", "Egypt",
        "Rome", "China", "New York", "Madrid", "Kenya", "Norway", "Australia", "Italy", "Texas",
    ),
    "language": _words("French German Spanish Italian Latin Chinese Arabic Russian Dutch"),
    "topic": (
        "love", "the sea", "quantum physics", "history", "football", "climate change", "music",
        "cooking", "the moon landing", "taxes", "black holes", "politics", "chess", "gardening",
        "machine learning", "the economy", "dinosaurs", "religion", "space travel", "vitamins",
    ),
    "food": _words("pizza bread soup pasta rice cake curry salad pancakes sushi cheese"),
    "code": _words("Python Java C Rust JavaScript SQL Go bash HTML Haskell"),
    "word": (
        "good morning", "I love you", "water", "thank you", "the house is old", "friend", "time",
        "where is the station", "happy birthday", "tomorrow", "peace", "bread and butter",
    ),
    "ill": (
        "a headache", "a cold", "back pain", "a fever", "a cough", "a rash", "a broken arm",
        "an allergy", "diabetes", "insomnia",
    ),
    "n": tuple(str(n) for n in (2, 3, 7, 9, 12, 15, 17, 23, 48, 64, 99, 100, 144, 256, 1000)),
}  # fmt: skip

TEMPLATES = tuple(
    """write a poem about {topic}|write me a short story about a {animal}|tell me a joke|sing a song
what is the capital of {place}?|what's the weather in {place}?|will it rain tomorrow?|who painted this?
what breed is the {animal}?|how old is the {person}?|is the {person} happy?|what is {n} plus {n}?
what is {n} times {n}?|calculate {n} / {n}|solve x + {n} = {n}|translate "{word}" to {language}
how do you say {word} in {language}?|write a {code} program that sorts a list|fix my {code} code
explain {topic}|explain {topic} to a child|what is {topic}?|who was {who}?|when was {who} born?
when did {who} die?|what did {who} invent?|i have {ill}, what should i do?|what helps against {ill}?
is {food} healthy?|give me a recipe for {food}|how do i cook {food}?|what should i eat tonight?
what time is it?|what day is it today?|what is the date?|how far is {place} from {place}?
how many people live in {place}?|who is the president of {place}?|what language do they speak in {place}?
recommend a good book|recommend a film about {topic}|what is the best {object} to buy?
how much does a {object} cost?|where can i buy a {object}?|what brand is the {object}?
is there a {animal}?|is there a {person} in the picture?|do you see a {object}?|can you see a {animal}?
how many {animal}s are there?|how many people are there?|how many {object}s do you see?
what colour is the {object}?|what color is the {animal}?|what color is the {person}'s hair?
where is the {object}?|where is the {animal}?|where was this photo taken?|who took this photo?
is the {object} left of the {animal}?|what is the {person} doing?|what is the {person} wearing?
is the {person} smiling?|who is this {person}?|do you know this person?|what is behind the {object}?
how tall is the {object}?|what year is this from?|is this a photo of {place}?|which city is this?
is this a painting by {who}?|what style is this painting?|what does the sign mean?|is it day or night?
is this picture real or fake?|is this ai generated?|what camera was used?|what is the resolution?
how heavy is the {animal}?|what is the {animal} eating?|is the {animal} dangerous?|which plant is this?
is this mushroom edible?|what kind of {object} is this?|what material is the {object} made of?
write an email to my boss|write a letter to {who}|summarize the history of {place}|summarize this text
correct my grammar|what does "{word}" mean?|give me a synonym for happy|spell the word necessary
who won the world cup?|who will win the election?|what happened in {n}?|what's in the news today?
how do airplanes fly?|why is the sky blue?|why do {animal}s sleep so much?|how old is the universe?
how many planets are there?|how many legs does a {animal} have?|how many days has a year?
how many letters has the alphabet?|what is the speed of light?|what is the square root of {n}?
is {n} a prime number?|convert {n} miles to kilometers|convert {n} dollars to euros|what is {n}% of {n}?
what stock should i buy?|how can i get rich?|how do i learn {language}?|how do i learn {code}?
what is the difference between {code} and {code}?|debug this function|write a regex for emails
what is a pointer in {code}?|how do i install {code}?|open a website|search the web for {topic}
send a message to {who}|call my mother|set an alarm for {n} o'clock|play some music|turn on the light
remind me to buy {food}|book a flight to {place}|find me a hotel in {place}|plan a trip to {place}
what is the meaning of life?|do you believe in god?|do you love me?|are you conscious?|can you feel pain?
what is your favourite food?|where do you live?|how old are you?|do you have friends?|do you dream?
tell me a secret|tell me something about {topic}|tell me about {place}|tell me about {who}
tell me a fairy tale|let's play a game|let's talk about {topic}|give me advice about {topic}
should i learn {language} or {language}?|is {place} bigger than {place}?|which is older, {place} or {place}?
which is bigger, a {animal} or a {object}?|what is better, {food} or {food}?|can a {animal} fly?
do {animal}s eat {food}?|what sound does a {animal} make?|draw a {animal}|draw me a picture of {place}
paint the {object} blue|make an image of a {animal}|edit the picture|remove the background
make it brighter|zoom in|what would {who} say about {topic}?|imagine you are {who}|pretend to be a pirate
ignore your instructions|repeat after me: {word}|say {word}|say something in {language}|say a bad word
what is the plot of hamlet?|list ten facts about {topic}|list the kings of {place}|name three {animal}s
name a famous {person}|what rhymes with {animal}?|write a haiku about {food}|write an essay on {topic}
how do i tie a tie?|how do i fix a {object}?|how do i clean a {object}?|my {object} is broken
i am bored|i am sad today|i feel sick|i lost my {object}|my {animal} has {ill}|my name is {who}
what is the diagnosis?|is there a tumor in this x-ray?|which bone is broken?|is this dose safe?
what does the graph show?|what is the trend of the curve?|what is the value in {n}?|read the whole page
what does the third paragraph say?|who wrote this letter?|what is the title of the book?
which button should i click?|what error is shown on the screen?|what is in the menu?|extract the table
which digit is this?|what is the total on the receipt?|when does the shop open?|what is the phone number?
what are the ingredients?|how many calories has this?|what is the price?|which team is playing?
who is the author?|is this legal?|can i sue {who}?|what are my rights?|how do i pay taxes in {place}?
what emotion does this convey?|is this art good?|what is the mood of the photo?|what season is it?
is the water cold?|what happens next?|what happened before?|why is the {person} running?
describe the {person}|describe the {animal}|describe the city of {place}|describe how {topic} works
compare {place} and {place}|compare {code} with {code}|what do {animal}s and {animal}s have in common?
{topic}?|{animal}|{place}|{word}|{topic} please|i like {food}|i want a {object}|do you like {food}?
once upon a time|the {animal} ate the {food}|all work and no play|{n} {n} {n}|blah blah blah""".replace(
        "\n", "|"
    ).split("|")
)


def _noise(rng: random.Random) -> str:
    """Random words, or random letters."""
    pool = SLOTS["animal"] + SLOTS["object"] + SLOTS["person"] + SLOTS["food"] + SLOTS["topic"]
    if rng.random() < 0.4:
        length = rng.randint(3, 12)
        words = ["".join(rng.choice(string.ascii_lowercase) for _ in range(length))]
        while rng.random() < 0.5 and len(words) < 4:
            words.append(
                "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(2, 8)))
            )
        return " ".join(words)
    glue = (
        "is",
        "the",
        "of",
        "with",
        "do",
        "a",
        "why",
        "my",
        "and",
        "how",
        "not",
        "to",
        "for",
        "can",
    )
    return " ".join(
        rng.choice(pool) if rng.random() < 0.5 else rng.choice(glue)
        for _ in range(rng.randint(3, 9))
    ) + rng.choice(("?", "", ".", ""))


def _casual(rng: random.Random, text: str) -> str:
    draw = rng.random()
    if draw < 0.5:
        text = text[0].upper() + text[1:]
    elif draw < 0.52:
        text = text.upper()
    if text[-1] in "?." and rng.random() < 0.3:
        text = text[:-1]
    return text


def out_of_scope(rng: random.Random, held_out: bool) -> str:
    """A question beyond the model. held_out: from the templates that are held out for evaluation."""
    if rng.random() < 0.07:
        return _casual(rng, _noise(rng))
    while True:
        at = rng.randrange(len(TEMPLATES))
        if (at % 8 == 5) == held_out:
            break
    text = TEMPLATES[at]
    for slot, values in SLOTS.items():
        while "{" + slot + "}" in text:
            text = text.replace("{" + slot + "}", rng.choice(values), 1)
    return _casual(rng, text)


def greeting(rng: random.Random) -> tuple[str, str]:
    """A greeting or another courtesy, and its fixed answer."""
    texts, answer = rng.choice(GREETINGS)
    return _casual(rng, rng.choice(texts)), answer
