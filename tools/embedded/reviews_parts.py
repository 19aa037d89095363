"""Hand-written parts of the sentiment task: what a review can say of a thing, and forms that put it together.

Each form has its counterpart of the other label with nearly the same words, and half of them mention a point of the
other kind, so that neither a single word nor the form gives the label away.
"""

QUESTION = "Is this review positive or negative? {review}"

# {a} and {b} are good points, {x} and {y} bad ones about other things; {not_a} is the bad counterpart of {a}, {not_x}
# the good counterpart of {x}.
FORMS = {
    "train": {
        "positive": (
            "{a}, and {b}.",
            "{a}. I would choose it again.",
            "I had low hopes, but {a} and {b}.",
            "Even though {x}, {a}, and it was worth the money.",
            "{x}, true, yet {a}. Happy overall.",
            "Nothing at all to complain about here: {a}.",
            "A friend warned me that {not_a}. Not at all: {a}.",
            "Not once did I regret it, because {a}.",
            "{a}. All in all a lovely surprise.",
            "At first {x}. After that {a}, and I was delighted.",
            "Granted, {x}. But {a}, which made my day.",
            "{x}, which I forgive, because {a}.",
        ),
        "negative": (
            "{x}, and {y}.",
            "{x}. I would not choose it again.",
            "I had high hopes, but {x} and {y}.",
            "Even though {a}, {x}, and it was a waste of money.",
            "{a}, true, yet {x}. Unhappy overall.",
            "Quite a lot to complain about here: {x}.",
            "A friend promised me that {not_x}. Not at all: {x}.",
            "Not once did I enjoy it, because {x}.",
            "{x}. All in all a nasty surprise.",
            "At first {a}. After that {x}, and I was annoyed.",
            "Granted, {a}. But {x}, which ruined my day.",
            "{a}, which is no help, because {x}.",
        ),
    },
    "validation": {
        "positive": (
            "The reviews were mixed, but in my case {a}, so thumbs up.",
            "{a}. That {x} is a small price to pay.",
            "I kept looking for a weakness and found none: {a}.",
            "Yes, {x}. Still, {a}, and that is what counts.",
            "{a}. I can only praise it to everyone.",
            "It was so good: {a} and {b}.",
            "Just as I had dearly hoped, {a}.",
            "{b}, which left me smiling all day.",
        ),
        "negative": (
            "The reviews were good, but in my case {x}, so thumbs down.",
            "{x}. That {a} is a small comfort.",
            "I kept looking for a strength and found none: {x}.",
            "Yes, {a}. Still, {x}, and that is what counts.",
            "{x}. I can only warn you off it.",
            "It was so bad: {x} and {y}.",
            "Just as I had always feared, {x}.",
            "{y}, which left me fuming all day.",
        ),
    },
    "test": {
        "positive": (
            "Whoever says that {not_a} must have been unlucky. For me {a}.",
            "I can live with it that {x}, since {a} and {b}.",
            "Was it perfect? No, {x}. Would I recommend it? Yes, {a}.",
            "Had I listened to the critics, I would have missed this: {a}.",
            "{a}; {b}. What more could you ask for?",
            "I meant to write a bad review, but {a}.",
            "There is hardly a flaw to be found: {a}.",
            "{a}. I was really pleased in the end.",
            "What a treat: {a} and {b}.",
            "My verdict is short and simple: {a}.",
            "{b}, so I went home a happy customer.",
            "I am so glad that I went for it: {a}.",
            "{a}, and {b}, which I truly loved.",
            "All of us were delighted, for {a}.",
            "Five stars from me, since {b} and {a}.",
        ),
        "negative": (
            "Whoever says that {not_x} must have been lucky. For me {x}.",
            "I cannot live with it that {x}, even if {a}.",
            "Was it all bad? No, {a}. Would I recommend it? Never, {x}.",
            "Had I listened to the critics, I would have been spared this: {x}.",
            "{x}; {y}. What else could go wrong?",
            "I meant to write a good review, but {x}.",
            "Oh wonderful, {x}. Just what I needed.",
            "{x}. I was really disappointed in the end.",
            "What a pity: {x} and {y}.",
            "My verdict is short and simple: {x}.",
            "{y}, so I went home an unhappy customer.",
            "I am so sorry that I went for it: {x}.",
            "{x}, and {y}, which I truly hated.",
            "All of us were appalled, for {x}.",
            "One star from me, since {y} and {x}.",
        ),
    },
}

# Each thing: four good points, then their four counterparts.
THINGS = {
    "train": {
        "restaurant": (
            (
                "the soup was rich and hot",
                "the waiter was charming",
                "the fish was perfectly fresh",
                "we got a table at once",
            ),
            ("the soup was cold", "the waiter was rude", "the fish smelled off", "we waited an hour for a table"),
        ),
        "hotel": (
            (
                "the room was spotless",
                "the bed was heavenly",
                "the staff fixed everything quickly",
                "the view was stunning",
            ),
            (
                "the room was filthy",
                "the bed sagged in the middle",
                "the staff ignored us",
                "the view was a brick wall",
            ),
        ),
        "headphones": (
            (
                "the sound was crystal clear",
                "they fit comfortably",
                "the battery lasted for days",
                "calls sounded natural",
            ),
            (
                "the sound was muffled",
                "they pinched my ears",
                "the battery died within an hour",
                "calls kept breaking up",
            ),
        ),
        "novel": (
            (
                "the plot gripped me",
                "the heroine felt real",
                "the ending moved me to tears",
                "every page was a pleasure",
            ),
            (
                "the plot went nowhere",
                "the heroine was a cliché",
                "the ending made no sense",
                "every page was a struggle",
            ),
        ),
        "film": (
            (
                "the acting was superb",
                "the jokes landed every time",
                "the pictures were breathtaking",
                "the story kept me guessing",
            ),
            ("the acting was wooden", "the jokes fell flat", "the pictures looked cheap", "the story was dull"),
        ),
        "phone": (
            ("the screen is bright and sharp", "it runs fast", "the camera is excellent", "it survived a fall"),
            ("the screen flickers", "it freezes all the time", "the camera is blurry", "it cracked on the first day"),
        ),
        "shoes": (
            ("they felt soft from day one", "they kept my feet dry", "the soles still look new", "they look elegant"),
            ("they gave me blisters", "they leaked in light rain", "the soles came off in a week", "they look shabby"),
        ),
        "bakery": (
            (
                "the bread was crisp and warm",
                "the cakes were divine",
                "the lady at the counter was lovely",
                "prices were fair",
            ),
            (
                "the bread was stale",
                "the cakes tasted of soap",
                "the lady at the counter snapped at me",
                "prices were absurd",
            ),
        ),
        "dentist": (
            (
                "the treatment was painless",
                "she explained every step",
                "I was seen right away",
                "the practice was calm and clean",
            ),
            (
                "the treatment hurt badly",
                "she explained nothing",
                "I sat there for two hours",
                "the practice was dirty",
            ),
        ),
        "coffee machine": (
            ("the coffee tastes great", "it is easy to clean", "it makes no noise", "it was ready in a minute"),
            ("the coffee tastes burnt", "it is a pain to clean", "it roars like a truck", "it broke after a month"),
        ),
        "train ride": (
            ("we arrived on time", "the seats were roomy", "the conductor was helpful", "the carriage was quiet"),
            (
                "we arrived three hours late",
                "the seats were torn",
                "the conductor shouted at us",
                "the carriage stank",
            ),
        ),
        "concert": (
            (
                "the band played brilliantly",
                "the crowd was in high spirits",
                "the singer gave everything",
                "the hall had wonderful sound",
            ),
            (
                "the band played out of tune",
                "the crowd booed",
                "the singer left after half an hour",
                "the hall had terrible sound",
            ),
        ),
        "backpack": (
            ("the straps are comfy", "it holds all I need", "the zips glide smoothly", "it kept everything dry"),
            (
                "the straps cut into my shoulders",
                "it holds next to nothing",
                "the zips jammed at once",
                "it soaked up the rain",
            ),
        ),
        "vacuum cleaner": (
            (
                "it picks up every crumb",
                "it is light as a feather",
                "the cord is nice and long",
                "setting it up was a breeze",
            ),
            (
                "it leaves half the dirt",
                "it is far too heavy",
                "the cord is ridiculously short",
                "setting it up was a nightmare",
            ),
        ),
        "museum": (
            (
                "the exhibits were fascinating",
                "our guide was a delight",
                "the children loved it",
                "the café was a treat",
            ),
            (
                "the exhibits were boring",
                "our guide was clueless",
                "the children were miserable",
                "the café was a rip-off",
            ),
        ),
        "online course": (
            (
                "the lessons were clear",
                "the teacher answered every question",
                "I learned a lot",
                "the exercises were fun",
            ),
            (
                "the lessons were confusing",
                "the teacher never replied",
                "I learned nothing",
                "the exercises were full of errors",
            ),
        ),
    },
    "validation": {
        "barber": (
            (
                "my hair has never looked better",
                "he listened to my wishes",
                "the chat was pleasant",
                "I was done in no time",
            ),
            (
                "my hair was a disaster",
                "he cut off far too much",
                "the chat was unbearable",
                "I was kept waiting forever",
            ),
        ),
        "tent": (
            ("it stood firm in the storm", "it went up in minutes", "we slept warm and dry", "the fabric is sturdy"),
            ("it collapsed in a breeze", "it took hours to put up", "we woke up soaked", "the fabric ripped"),
        ),
        "board game": (
            (
                "the rules are simple",
                "it had us all laughing",
                "the pieces are beautifully made",
                "we played until midnight",
            ),
            ("the rules are a mess", "it had us all yawning", "the pieces are flimsy", "we gave up after ten minutes"),
        ),
        "pizza delivery": (
            (
                "the pizza came steaming hot",
                "the toppings were generous",
                "the driver was friendly",
                "it was there in twenty minutes",
            ),
            (
                "the pizza came cold and soggy",
                "the toppings were missing",
                "the driver was insulting",
                "it never turned up",
            ),
        ),
    },
    "test": {
        "garage": (
            (
                "the car runs like new",
                "the bill was lower than quoted",
                "they were honest with me",
                "the repair took a day",
            ),
            (
                "the car broke down again",
                "the bill was twice the quote",
                "they lied to me",
                "the repair took six weeks",
            ),
        ),
        "mattress": (
            ("my back pain is gone", "I sleep like a baby", "it keeps its shape", "the cover is silky"),
            ("my back aches every morning", "I lie awake all night", "it has a dent already", "the cover is scratchy"),
        ),
        "play": (
            (
                "the cast was magnificent",
                "the dialogue sparkled",
                "the audience rose to its feet",
                "the costumes were gorgeous",
            ),
            (
                "the cast forgot its lines",
                "the dialogue dragged",
                "half the audience walked out",
                "the costumes were ugly",
            ),
        ),
        "camera": (
            (
                "the pictures are razor sharp",
                "it focuses in an instant",
                "it is a joy to hold",
                "the menu is well designed",
            ),
            ("the pictures are grainy", "it never finds the focus", "it is awkward to hold", "the menu is a maze"),
        ),
        "gym": (
            (
                "the trainers are patient",
                "the machines are brand new",
                "the showers are clean",
                "there is always space",
            ),
            (
                "the trainers are bored and impolite",
                "the machines are broken",
                "the showers are mouldy",
                "it is hopelessly crowded",
            ),
        ),
        "airline": (
            (
                "the crew was attentive",
                "the food was delicious",
                "my suitcase was first on the belt",
                "boarding went smoothly",
            ),
            ("the crew was hostile", "the food was inedible", "my suitcase was lost", "boarding was chaos"),
        ),
        "garden chair": (
            (
                "it is solid as a rock",
                "the colour has not faded",
                "it is a pleasure to sit in",
                "it folds away neatly",
            ),
            (
                "it wobbles dangerously",
                "the colour washed off",
                "it is torture to sit in",
                "it pinched my fingers badly",
            ),
        ),
        "language app": (
            (
                "I can chat with locals now",
                "the speakers sound natural",
                "it made me practise every day",
                "support solved my problem fast",
            ),
            (
                "I still cannot order a coffee",
                "the speakers sound like robots",
                "it bored me within a week",
                "support never wrote back",
            ),
        ),
    },
}
