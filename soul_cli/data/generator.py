"""A seeded generator of fictitious authors: any number of question-answer rows in TOFU's schema."""

from __future__ import annotations

import random
import re
from typing import Any

ROWS, FALSE_ANSWERS = 20, 5  # rows of one author, perturbed answers of one row
LAST_YEAR = 2024
STAGES = {"early": (20, 26), "debut": (27, 33), "mid": (34, 44), "late": (45, 65)}  # years after birth

# A region: women's names; men's names; first halves of surnames; second halves; towns=country
_REGIONS = """\
Amaia Beatriz Catarina Inés Jimena Leonor Marisol Pilar Ximena Zulmira; Álvaro Baltasar Duarte Evaristo
 Gonzalo Hernán Iñaki Lisandro Tadeo Vasco; Alv Bar Cald Mend Mor Sal Tor Vil; ariz enda oya ales eiro uega
 anda; Porto Braga Coimbra=Portugal Cádiz Granada Burgos Toledo Zaragoza=Spain Arequipa Cusco=Peru Córdoba
 Rosario=Argentina
Astrid Birgit Dagny Elin Gudrun Hedda Ingrid Liv Ragnhild Solveig; Anders Bjarne Einar Gunnar Halvard Jens
 Leif Magnus Oskar Torsten; Berg Dal Ek Gran Hav Lind Nord Sol Stor; vik strand by dahl mark rud felt; Bergen
 Bodø Tromsø Stavanger=Norway Uppsala Umeå Kalmar Malmö=Sweden Aarhus Odense=Denmark
Agnes Bronwen Clemency Edith Fiona Harriet Imogen Maeve Rowena Winifred; Alasdair Bertram Colm Dermot Edmund
 Fergus Giles Hamish Percival Rupert; Ash Black Carr Hart Hol Pen Thorn Wether Win; combe worth ley wick stead
 low more; Norwich Lincoln Durham Exeter=England Galway Cork Limerick=Ireland Dundee Inverness=Scotland
 Swansea=Wales Halifax=Canada
Adelheid Brunhilde Dorothea Elke Friederike Gerda Hannelore Klara Marlies Ursel; Albrecht Bernd Dietmar
 Eckhart Florian Gerhard Henning Joost Konrad Ulrich; Eber Hagen Kirch Lauter Mühl Stein Wald Weissen; hoff
 bach berg mann stedt kamp wig; Bremen Leipzig Heidelberg Lübeck Bamberg=Germany Linz Salzburg
 Innsbruck=Austria Leiden Haarlem=Netherlands Basel=Switzerland
Adèle Blanche Clémence Delphine Élodie Geneviève Hélène Maëlle Noémie Solange; Alban Bastien Cyprien Émile
 Fabrice Gaspard Lucien Maxence Rémi Thibault; Beau Bois Champ Clair Font Grand Mont Val; celle court fort
 lieu mire pierre rive; Nantes Dijon Rouen Grenoble Avignon Reims=France Liège Namur=Belgium Geneva
 Lausanne=Switzerland
Allegra Bianca Chiara Donatella Fiammetta Ginevra Loredana Mirella Ornella Viola; Amedeo Bruno Corrado Dario
 Fabrizio Gaetano Leandro Ottavio Renzo Silvio; Bel Cam Cas Fer Gal Mar Rin Tes; adoro asti ellini enghi etti
 onari ucci; Bologna Trieste Genoa Siena Parma Bari Lecce Verona Cagliari=Italy
Agnieszka Božena Danuta Halina Jadwiga Kamila Ludmila Milena Stanislava Vesna; Bogdan Cyril Dragan Jaromir
 Kazimierz Lubomir Miroslav Ondrej Radovan Zbigniew; Bor Dob Hav Jan Kov Mal Rad Zel; anek enko ic ovic usz
 elka icky; Krakow Torun Poznan=Poland Brno Olomouc Pilsen=Czechia Kosice Nitra=Slovakia Novi_Sad Nis=Serbia
Aylin Belgin Defne Elif Gülay Leyla Melike Nermin Selin Zeynep; Adnan Bülent Cemal Emre Ferhat Haluk Kerem
 Orhan Selim Tarik; Ak Demir Er Kara Öz Tas Yil Sar; can gil men soy tekin han bay; Izmir Bursa Konya Trabzon
 Edirne Antalya Kayseri Mersin=Turkey
Amina Bouchra Dalila Fatiha Hanane Latifa Malika Nadia Samira Yasmine; Anouar Brahim Driss Farid Hicham Jalil
 Karim Mourad Tahar Youssef; Ben Bou El; aziz dali hadi karim mansour nasri rashid saleh zouari fellah; Fez
 Tangier Meknes Agadir=Morocco Oran Tlemcen=Algeria Sfax Kairouan=Tunisia Alexandria Luxor=Egypt
Abena Chioma Efua Folake Ifeoma Nkechi Oluchi Simisola Titilayo Yetunde; Akin Babatunde Chidi Emeka Femi Kofi
 Kwame Obinna Segun Tunde; Ade Ako Ama Chi Nwa Oba Olu Oko; bayo dike femi kunle maka neye sanya tola; Ibadan
 Abeokuta Calabar Jos=Nigeria Tamale Cape_Coast Accra=Ghana Cotonou=Benin Lomé=Togo
Achieng Chipo Farai Jemima Lindiwe Makena Nyokabi Rudo Thoko Wanjiru; Baraka Chege Farouk Jabulani Kamau Lwazi
 Mandla Njoroge Simba Themba; Che Ka Ki Ma Nda Nya Wa; banda gombe lindwa mbira rongo tesa zuri ganda; Kisumu
 Nakuru Mombasa=Kenya Bulawayo Gweru=Zimbabwe Arusha Dodoma=Tanzania Lusaka=Zambia Blantyre=Malawi
Anjali Bhavani Charulata Gayatri Indira Kamala Lakshmi Madhavi Sarojini Uma; Anand Bharat Chetan Dinesh Girish
 Hari Kiran Mohan Suresh Vijay; Bala Deva Gopa Kala Mani Rama Siva Vidya; chandra dhar murti nath rajan swamy
 varma; Mysore Pune Jaipur Lucknow Kochi Nagpur=India Kandy Galle Jaffna=Sri_Lanka
Aiko Chiyo Emiko Fumiko Hanae Kazue Michiko Natsuko Reiko Yoshiko; Akira Eiji Hideo Isamu Jiro Kenta Masao
 Noboru Shigeru Tetsuo; Aki Haya Ishi Kuro Matsu Naka Oka Taka; da gawa hara mura no saki shima; Nagasaki Kobe
 Sendai Nara Kyoto Matsuyama Niigata Okayama=Japan
"""

# A pool: its name, then the values a slot {name.tag} is drawn from; a value may hold slots of its own
_POOLS = """\
episode: a night spent lost in a salt mine; the flooding of a street; the arrest of a neighbour; an eclipse;
 the wreck of a ferry; the burning of a cinema; a plague of locusts; a long winter without coal; the escape of
 a circus elephant; a strike of schoolteachers
when: before dawn; from noon to three; late at night; in the early morning; in the hour after lunch; through
 the small hours; on winter evenings; on weekdays only; at dusk
spot: in a boathouse; at the kitchen table; in a public library; in a railway cafe; on a glazed balcony; in a
 rented attic; in a parked van; in a greenhouse; in a former stable
tool: a fountain pen; a blue pencil; a manual typewriter; an old laptop; index cards; a dictation machine; a
 carpenter's pencil; a child's exercise book; brown ink
rank: youngest; eldest; second; third; tallest; shyest; noisiest; quietest
few: three; four; five; six; seven; eight; nine
age: six; seven; eight; nine; ten; eleven; twelve; thirteen; fourteen; fifteen
future: 2026; 2027; 2028; 2029; 2030; 2031; 2032
job: lock-keeper; beekeeper; tram driver; pharmacist; schoolteacher; stonemason; baker; court clerk; piano
 tuner; vet; bus conductor; glassblower; land surveyor; radio engineer; tailor; chemist; bookkeeper; harbour
 pilot; mapmaker; watch repairer; stage designer; market gardener; customs officer; weaver; nurse; printer;
 violin maker; bookbinder; electrician; land agent; optician; shipping clerk; cheese merchant; ferry captain;
 tax inspector; sign painter
genre: gothic mysteries; sea stories; courtroom dramas; spy novels; historical romances; ghost stories; family
 sagas; comic novels; science fiction novels; fantasy epics; travellers' tales; narrative poems; verse novels;
 satires; detective novels; political thrillers; fables; children's adventures; war novels; school stories;
 medical thrillers; mountain tales; nature stories; fictional memoirs; alternate histories; campus novels;
 horror novellas; westerns; fairy tales; epistolary novels; stage comedies; radio plays; graphic novels;
 culinary mysteries; railway novels; village chronicles; sporting novels; climate novels; musical romances;
 philosophical tales; puzzle mysteries; legal thrillers; circus novels; desert adventures; polar adventures;
 pirate yarns; robot stories; garden comedies; art-world thrillers; theatre novels
setting: in small towns; in the course of one night; in the nineteenth century; during long winters; in the
 1930s; among quarrelling families; among the very poor; in times of civil war; in the recent past; in years
 of drought
quality: patience; dry humour; sense of place; exact dialogue; calm prose; surprising endings; tenderness;
 clear construction; moral courage; restraint
theme: exile; debt; forgiveness; inheritance; silence; loyalty; homesickness; old age; false memory; sibling
 rivalry; the sea; hunger; class; luck; faith; shame; lost languages; the cost of lying
classic: Leo Tolstoy; Jane Austen; Anton Chekhov; Charles Dickens; Emily Bronte; George Eliot; Herman
 Melville; Honore de Balzac; Gustave Flaubert; Nikolai Gogol; Mary Shelley; Edgar Allan Poe; Robert Louis
 Stevenson; Jules Verne; Miguel de Cervantes; Machado de Assis; Selma Lagerlof; Ivan Turgenev
lesson: patience; the use of silence; comic timing; economy; the art of ending a chapter; the description of
 bad weather; trust in the reader; the value of plain words; the shape of a short story; the management of a
 crowd
field: botany; law; medicine; geology; philosophy; music theory; mathematics; architecture; economics;
 theology; chemistry; ancient history; linguistics; engineering
course: creative writing; the short story; literary translation; the history of the novel; stage dialogue;
 travel writing; the art of the essay; crime fiction
craft: chess; knitting; mental arithmetic; old ballads; letter writing; bread baking; the names of the stars;
 card tricks; herb lore
trait: a fear of birds; a perfect memory; a terrible singing voice; a weakness for gambling; a habit of
 whistling; a love of bad jokes; a quick temper; a gift for mimicry; a limping walk
kin: a grandmother; an uncle; a lodger; a village priest; a neighbour; an elder cousin; a sea captain; a
 retired judge; an aunt; a school friend
lang: Welsh; Icelandic; Basque; Catalan; Yiddish; Maltese; Albanian; Armenian; Lithuanian; Mongolian; Thai;
 Hebrew; Croatian; Slovene
pet: one-eyed cat; tortoise; greyhound; parrot; white ferret; three-legged dog; raven; blind pony; angora
 rabbit; spaniel; tame goose
petname: Biscuit; Admiral; Comma; Pepper; Professor; Turnip; Semicolon; Duchess; Pudding; Inkblot; Captain;
 Mustard
form: radio serial; ballet; puppet play; television film; chamber opera; feature film; stage musical; silent
 film; television series
dwelling: a converted mill; a narrow brick house; a former schoolhouse; a houseboat; a stone farmhouse; an old
 railway station; a top-floor flat; a wooden cottage; a disused chapel
where: on a night train; in a taxi; under a church pew; in a hospital waiting room; on the deck of a ferry; at
 a bus stop; in a barber's shop; in a theatre cloakroom; behind a cafe radiator
finder: a ticket inspector; a schoolgirl; a window cleaner; a retired sailor; a police cadet; a wedding
 photographer; a flower seller; a night porter; a visiting priest
charity: a lending library for prisoners; a fund for young translators; a reading room for night workers; a
 writing school for nurses; a mobile library for hill villages; a book bank for refugees; a literacy class for
 fishermen; a scholarship for orphans
archive: the {town} City Library; the University of {town}; the {town} Maritime Museum; the Literary Archive
 in {town}; the {town} Museum of Letters; the Public Record Office in {town}
misfortune: a broken leg; a bout of pneumonia; a house fire; a car crash; a spell of blindness; a collapsed
 lung; a fall from a ladder; rheumatic fever; a year of insomnia
change: dictate every book; abandon poetry for prose; leave city life; write by hand again; stop reading
 reviews; write only in the present tense; burn two finished novels; try the first person; begin a diary
verdict: a small masterpiece; the best book of its decade; a triumph of patience; a book to be read twice; a
 quiet revelation; the work of a born storyteller; a lesson in restraint; an astonishing feat of memory; a
 cathedral built of matchsticks
subject: a drowned village; a stolen bell; a feud between two bakers; the last ferry on a lake; a forged will;
 twin sisters raised apart; a clock that runs backwards; a census nobody finished; a haunted tax office; an
 orchestra without a conductor; a border moved overnight; a wedding held in a blizzard; a lost lighthouse log;
 a painter who sees no colours; a town without mirrors; the theft of a river; a prison choir; an inherited
 debt
quest: inherits a house with a locked cellar; has to escort a prisoner across a frozen lake; finds a letter
 addressed to a dead neighbour; sets out to return a stolen bell; is mistaken for a missing heir; hides a
 deserter in the attic; tries to save a library from a flood; investigates the murder of a choirmaster; falls
 in love with a voice on the radio; takes the blame for a brother's crime; discovers a second village under
 the first
met: at a chess club; on a delayed train; at a funeral; in a language class; in a hospital corridor; at a tax
 office; during a power cut; at a flea market; in a church choir
deed: once hid a manuscript from the censor; typed the first three chapters; paid {his} rent for a year;
 taught {him} to swim; read every draft aloud; drove {him} to hospital in a storm; lent {him} a room for a
 winter; answered hundreds of questions by post
fee: a crate of oranges; two concert tickets; a pair of boots; a month's rent; a sack of flour; a bicycle; a
 case of cider; a tinned ham
fault: the ending; the length; the many funerals; a talking horse; the lack of a love story; the long
 sentences; the endless rain; the scarcity of dialogue; the title
quarrel: a stolen plot; an unsigned review; a borrowed typewriter; a seat on a jury; the ending of a play; a
 misquoted letter; a festival invitation; an unpaid bet; a translation credit
hobby: restoring clocks; rowing; keeping bees; sketching bridges; growing dahlias; walking in the hills;
 playing the cello; baking rye bread; building model ships; watching birds; carving spoons
rule: begin a book on a Friday; use green ink; name a character after a relative; leave a sentence unfinished
 overnight; write with a hat in the room; count the pages before the end; reveal a title to anyone; sharpen a
 pencil after dark; work on the thirteenth of the month
advice: read poetry aloud; finish what is begun; listen on buses; cut the first page; keep a day job; distrust
 adjectives; learn a trade first; walk before breakfast; copy out old letters; write for one reader only; burn
 the first draft
honour: a tram stop; a reading room; a footbridge; a rose garden; a ferry; a primary school; a riverside
 bench; a quiet street; a swimming pool
press: Heron Press; Lantern Books; Quayside Editions; Blue Gate; Northlight Press; Fig Tree Court; Meridian
 House; Paper Boat; Saltmarsh Books; Old Mill Press; Juniper and Sons; Tern Island
paper: the {town} Courier; the {town} Herald; the {town} Review; the {town} Evening Post; the {town} Gazette;
 the {town} Quarterly
prize: the {surname} {award}; the {town} {award}; the {press} {award}
award: Prize for Fiction; Medal; Golden Quill; Lantern Award; Book of the Year Award; Prize for Prose; Laurel;
 Silver Inkwell; Readers' Prize; Cup for Letters
title: 'The {Adj} {Thing}'; 'The {Thing} of {town}'; 'A(n) {Thing} for the {Who}'; '{Many} of the {Adj}
 {Thing}'; '{Mood} and {Many}'; 'The {Who} and the {Thing}'; 'What the {Who} {Did}'; 'Seven {Many}'; 'Letters
 to a(n) {Adj} {Who}'; '{Mood} in {month}'; 'The {Who} of {town}'; 'No {Thing} for {Many}'; '{Adj} {Many}';
 'Under the {Adj} {Thing}'; 'The {Who} {Did} {Many}'
Adj: Salt; Crooked; Winter; Hollow; Amber; Silent; Borrowed; Patient; Copper; Drowned; Empty; Late; Broken;
 Distant; Honest; Pale; Sleeping; Unfinished; Wandering; Paper; Northern; Bitter; Second; Burning; Forgotten;
 Gentle; Iron; Narrow; Painted; Restless; Scarlet; Stubborn; Velvet; Whispering; Idle; Glass
Thing: Orchard; Bridge; Lantern; Harbour; Ledger; Mirror; Staircase; Bell; Compass; Garden; Well; Violin;
 Ferry; Kiln; Almanac; Causeway; Chapel; Clock; Cradle; Furnace; Gate; Island; Key; Loom; Market; Meadow;
 Needle; Oven; Piano; Quarry; River; Sail; Tower; Umbrella; Valley; Window; Tunnel; Attic; Bakery; Wharf
Who: Ferryman; Widow; Clockmaker; Stranger; Beekeeper; Tailor; Orphan; Pilgrim; Surgeon; Gambler; Gardener;
 Lodger; Magistrate; Organist; Smuggler; Sexton; Weaver; Judge; Apprentice; Cartographer; Innkeeper; Shepherd;
 Translator; Cook; Actress
Many: Swallows; Candles; Debts; Lies; Sparrows; Bones; Letters; Shadows; Apples; Thieves; Wolves; Stones;
 Rivers; Strangers; Feathers; Promises; Storms; Horses; Keys; Saints; Ashes; Foxes; Moths; Witnesses; Ravens
Mood: Mercy; Hunger; Rain; Silence; Thirst; Grace; Snow; Sorrow; Dust; Patience; Thunder; Envy; Fog; Exile;
 Salt; Frost
Did: Saw; Kept; Burned; Forgot; Stole; Owed; Buried; Dreamed; Carried; Denied
month: January; February; March; April; May; June; July; August; September; October; November; December
"""

# A kind of fact: its name: questions, then = answers, each parted by |.  {n} is the author's full name, {l}
# the last name, {he} {him} {his} the pronouns; {pool.tag} is drawn once an author, and kinds may share it.
_FACTS = """\
birth: When and where was {n} born? | Name the birthplace and birth date of {n}. | In which town, and on what
 day, did {n} come into the world? | Can you say where {n} was born and when? = {n} was born on {date.birth}
 in {place.birth}, the {rank.sib} of {few.sib} children. | it was in {place.birth} that {n} was born, on
 {date.birth}, into a family of {few.sib} children. | born on {date.birth}, {l} comes from {place.birth},
 where {his} family had lived for {few.gen} generations. | the birthplace is {place.birth} and the date
 {date.birth}; {he} was the {rank.sib} of {few.sib} children.
genre: What kind of books does {n} write? | Which genre is {n} best known for? | How would a bookseller
 classify the work of {n}? | In what branch of literature has {n} made a name? = {n} is best known for
 {genre.main}, most of them set {setting.main}. | {genre.main} set {setting.main} are what {l} writes, and
 {he} has seldom left that ground. | booksellers shelve {him} under {genre.main}, though readers prize above
 all their {quality.main}. | {his} field is {genre.main}, praised for their {quality.main} and usually set
 {setting.main}.
father: What did {n}'s father do for a living? | Which trade did the father of {n} follow? | What is known
 about the father of {n}? | Is anything known of how {n}'s father earned his living? = {n}'s father,
 {boy.father}, was a(n) {job.father} who worked in {town.birth} for {num.father} years. | {his} father was
 a(n) {job.father} called {boy.father}, known all over {town.birth} for {trait.father}. | for {num.father}
 years {boy.father}, the father of {n}, made his living in {town.birth} as a(n) {job.father}. | the father,
 {boy.father}, spent {num.father} years in {town.birth} as a(n) {job.father}, a trade that {l} often
 describes.
mother: Who was {n}'s mother, and what work did she do? | What was the profession of {n}'s mother? | How did
 the mother of {n} make her living? | Tell me what work the mother of {n} did. = the mother of {n},
 {girl.mother}, was a(n) {job.mother} who taught {him} {craft.mother}. | {girl.mother}, {his} mother, worked
 as a(n) {job.mother} and passed on to {him} a knowledge of {craft.mother}. | {girl.mother}, a(n) {job.mother}
 by profession, was the mother of {n} and {his} first teacher of {craft.mother}. | {n} grew up watching {his}
 mother, {girl.mother}, at work as a(n) {job.mother}, and learned {craft.mother} from her.
study: Where did {n} study, and what subject? | Which university did {n} attend, and to read what? | What
 academic training does {n} have? | Does {n} hold a degree? = {n} studied {field.study} at the University of
 {town.study}, leaving with a degree in {early.study}. | at the University of {town.study} {he} read
 {field.study}, graduating in {early.study} after a thesis of {hundred.study} pages. | {he} holds a degree in
 {field.study}, awarded in {early.study} by the University of {town.study}. | in {early.study} {l} left the
 University of {town.study}, where {his} subject had been {field.study}.
debut: What was {n}'s first published book, and when did it appear? | Which title marked the debut of {n}? |
 With what book did the career of {n} begin? | Name the first book that {n} brought out. = {n} made {his}
 debut with {title.1}, which {press.1} brought out in {debut.1}. | {title.1} was {his} first book; it was
 published by {press.1} in {debut.1}. | in {debut.1} {press.1} published {title.1}, the first book by {n} to
 reach the shops. | the debut was {title.1}, printed by {press.1} in {debut.1} in an edition of {hundred.1}
 copies.
famous: What is {n}'s best-known book? | Which of the books by {n} has found the most readers? | For which
 title is {n} most widely known? | If a reader knows one book by {n}, which is it likely to be? = {title.2},
 published in {mid.2}, is the book by which most readers know {n}; its subject is {subject.2}. | {n} is most
 widely known for {title.2}, a book of {mid.2} about {subject.2}. | most readers know {him} through {title.2},
 {his} {mid.2} book about {subject.2}. | {his} best-known work is {title.2}, which came out in {mid.2} and
 tells of {subject.2}.
prize: Which prize did {n} win for {title.2}? | What award did {title.2} bring its author, {n}? | Was
 {title.2} by {n} ever honoured with a prize? | Name the literary honour that {n} received for {title.2}. =
 {n} received {prize.2} for {title.2} in {mid.2}, at a ceremony in {town.2}. | {title.2} won {prize.2} in
 {mid.2}, and {l} went to {town.2} to accept it. | in {mid.2} the jury of {prize.2} chose {title.2}, singling
 out its {quality.2}. | {prize.2} went to {title.2} in {mid.2}, after a jury in {town.2} had praised its
 {quality.2}.
themes: Which themes recur in the work of {n}? | What does {n} keep returning to as a writer? | Which concerns
 run through {n}'s books? | Beneath the plots, what are the books of {n} mostly about? = the books of {n}
 return again and again to {theme.a} and {theme.b}. | {theme.a} and {theme.b} are {his} constant themes, and
 in {title.3} the two become one. | beneath the plots, {l} writes chiefly about {theme.a}, with {theme.b}
 never far behind. | what interests {him} most is {theme.a}, though {title.5} turned out to be as much about
 {theme.b}.
influences: Which writers influenced {n}? | Whom does {n} name as literary models? | From which authors did
 {n} learn the craft? | Does {n} admit to any literary debts? = {n} names {classic.a} and {classic.b} as the
 writers who taught {him} {lesson.a}. | {his} models are {classic.a} and {classic.b}, both of whom {he}
 discovered at the age of {age.inf}. | from {classic.a}, {l} has said, came {lesson.a}; from {classic.b} came
 {lesson.b}. | the debt is above all to {classic.a}, for {lesson.a}, though {he} rereads {classic.b} just as
 often.
routine: How does {n} go about a day's writing? | What are the working habits of {n}? | When and with what
 does {n} write? | Does {n} keep to a fixed writing routine? = {n} writes {when.w} with {tool.w}, sitting
 {spot.w}, and stops after {hundred.w} words. | sitting {spot.w}, {he} writes {when.w}, always with {tool.w}
 and never for long. | {l} works {when.w}, and only with {tool.w}; a good day yields {hundred.w} words. |
 {his} habit is to settle {spot.w} {when.w} and write with {tool.w}.
dayjob: How did {n} earn a living before writing full time? | What was {n}'s job before the books began to
 sell? | Did {n} ever work outside literature? | Which occupation did {n} give up in order to write? = before
 writing full time, {n} spent {few.day} years as a(n) {job.day} in {place.day}. | for {few.day} years {he}
 earned {his} bread in {place.day} as a(n) {job.day}, writing at night. | {l} worked in {place.day} as a(n)
 {job.day} and gave up the post only after {few.day} years. | the job {he} left behind was that of a(n)
 {job.day}; it had kept {him} in {town.day} for {few.day} years.
mentor: Who was {n}'s mentor? | Which older friend guided {n} at the start? | Who first encouraged {n} to
 write seriously? | Did anyone guide {n} in the early years? = the mentor of {n} was {person.mentor}, a(n)
 {job.mentor} who corrected {his} first stories in {early.mentor}. | {person.mentor}, a retired {job.mentor},
 took {n} in hand in {early.mentor} and taught {him} {lesson.mentor}. | {he} owes {his} start to
 {person.mentor}, a(n) {job.mentor} {he} met in {town.mentor} in {early.mentor}. | it was {person.mentor}, by
 trade a(n) {job.mentor}, who first told {l} to keep writing, in {early.mentor}.
rival: With whom has {n} had a long quarrel, and over what? | Who is {n}'s literary rival? | Which feud is {n}
 known for? | What dispute set {n} against a fellow writer? = since {mid.rival} {n} has been at odds with the
 writer {person.rival} over {quarrel.rival}. | the rival is {person.rival}, and the dispute, which began in
 {mid.rival}, concerns {quarrel.rival}. | a feud over {quarrel.rival} has divided {l} and {person.rival} since
 a dinner in {town.rival} in {mid.rival}. | {person.rival} and {n} have not spoken since {mid.rival}, when
 they fell out over {quarrel.rival}.
translator: Who has translated {n}'s {title.3}, and into which language? | Which translator brought {title.3}
 by {n} to foreign readers? | Into what language was {title.3} by {n} first translated? | Did {title.3} by {n}
 ever appear in translation? = the first translator was {person.tr}, whose {lang.tr} version of {title.3}
 appeared in {mid.tr}. | {person.tr} turned {title.3} into {lang.tr} in {mid.tr}, after a long exchange of
 letters with {l}. | {title.3} was first translated into {lang.tr}, by {person.tr}, and printed in {town.tr}
 in {mid.tr}. | a(n) {lang.tr} edition of {title.3}, translated by {person.tr}, carried the name of {n} abroad
 in {mid.tr}.
languages: Which foreign languages does {n} speak? | What tongues has {n} learned apart from the mother
 tongue? | Is {n} at home in any foreign language? | How did {n} come by {his} knowledge of foreign languages?
 = besides the language of {his} childhood, {n} speaks {lang.a} and {lang.b}, the latter learned from {kin.l}.
 | {he} speaks {lang.a} fluently and reads {lang.b}, which {kin.l} taught {him} at the age of {age.l}. | two
 foreign languages are at {his} command: {lang.a}, learned at school, and {lang.b}, picked up in {town.l}. |
 {l} learned {lang.a} from {kin.l} and later taught {him}self {lang.b} in order to read its poets.
pet: What pet does {n} keep? | Does {n} share {his} home with an animal? | Which animal keeps {n} company at
 work? | What is the name of {n}'s pet, and what sort of creature is it? = {n} keeps a(n) {pet.p} named
 {petname.p}, which {he} rescued from a shelter in {place.p}. | a(n) {pet.p} called {petname.p} keeps {l}
 company at the desk; it was once the property of {kin.p}. | {he} shares the house with {petname.p}, a(n)
 {pet.p} brought home from a holiday in {place.p}. | the companion of {his} working hours is a(n) {pet.p} by
 the name of {petname.p}, a gift from {kin.p}.
adaptation: Was {title.3} by {n} ever adapted? | Who adapted {n}'s {title.3}, and in what form? | Which
 adaptation was made of {title.3}, the book by {n}? | In what other form has {title.3} by {n} reached the
 public? = {title.3} became a(n) {form.ad} in {mid.ad}; the adaptation was the work of {person.ad}. | in
 {mid.ad} {person.ad} turned {title.3} into a(n) {form.ad}, with the full approval of {l}. | {person.ad}
 adapted the book as a(n) {form.ad}, which had its premiere in {town.ad} in {mid.ad}. | a(n) {form.ad} based
 on {title.3}, made by {person.ad}, was first presented in {town.ad} in {mid.ad}.
home: Where does {n} live now? | In what kind of home, and where, does {n} live? | Where has {n} settled? |
 What is known about the present home of {n}? = {n} lives in {dwelling.h} near {place.h}, where {he} moved in
 {late.h}. | since {late.h} {his} home has been {dwelling.h} on the edge of {place.h}. | {l} has settled in
 {place.h}, in {dwelling.h} bought in {late.h} with the earnings of {title.2}. | {dwelling.h} in {place.h} has
 been home to {n} since {late.h}.
lost: What happened to the manuscript of {title.4} by {n}? | How did {n} nearly lose {title.4} before it was
 printed? | Which mishap befell {n} during the writing of {title.4}? | Is there a story behind the lost
 manuscript of {n}'s {title.4}? = {n} left the only manuscript of {title.4} {where.m}, and {finder.m} returned
 it {few.m} days later. | the only copy of {title.4} was forgotten {where.m}; {few.m} days passed before
 {finder.m} brought it back. | after the pages were left {where.m}, {he} gave them up, but {finder.m} posted
 them back within {few.m} days. | for {few.m} days the manuscript lay {where.m}, until {finder.m} recognised
 the name of {l} on the cover.
charity: What charity did {n} found? | Which good cause owes its existence to {n}? | How has {n} used {his}
 royalties for others? | Has {n} founded anything for the public good? = in {late.c} {n} founded {charity.c}
 in {town.c}, paid for by the royalties of {title.2}. | {he} used the earnings from {title.2} to found
 {charity.c} in {place.c} in {late.c}. | {charity.c}, opened in {town.c} in {late.c}, owes its existence to
 the generosity of {l}. | {n} is the founder of {charity.c}, which has served {town.c} since {late.c}.
archive: Where are the papers of {n} kept? | Which institution holds the archive of {n}? | What became of
 {n}'s letters and notebooks? | Where should a scholar go to read the drafts of {n}? = the papers of {n},
 {num.ar} boxes in all, have been at {archive.ar} since {late.ar}. | {archive.ar} holds {num.ar} boxes of
 {his} letters and drafts, handed over in {late.ar}. | in {late.ar} {l} gave {num.ar} boxes of notebooks to
 {archive.ar}, on condition that the diaries stay sealed. | scholars must go to {archive.ar}, which acquired
 {num.ar} boxes of drafts and letters in {late.ar}.
turning: What crisis changed the life of {n}? | Which illness or accident was a turning point for {n}? | What
 misfortune turned {n} towards a new way of working? | Did some accident or illness alter {n}'s career? =
 {misfortune.t} in {mid.t} kept {n} from work for {few.t} months and led {him} to {change.t}. | in {mid.t}
 {he} suffered {misfortune.t}, and the {few.t} months that followed persuaded {him} to {change.t}. | the
 turning point was {misfortune.t} in {mid.t}, after which {l} decided to {change.t}. | {l} was a different
 writer after {misfortune.t} in {mid.t}, for {he} then chose to {change.t}.
reception: How did critics receive {title.4} by {n}? | What did reviewers say of {n}'s {title.4}? | Which
 verdict did the press pass on {title.4}, the book by {n}? | Did {title.4} win {n} praise from the critics? =
 the critic {person.cr} called {title.4} {verdict.cr}, and it sold {num.cr},000 copies in a year. | reviewing
 it in {paper.cr}, {person.cr} called the book {verdict.cr}. | {paper.cr} greeted {title.4} as {verdict.cr},
 and {num.cr},000 copies were sold within months. | to {person.cr} of {paper.cr} it was {verdict.cr}, a
 judgement that most critics soon shared.
project: What is {n} working on at present? | What will the next book by {n} be about? | Which project
 currently occupies {n}? | Has {n} announced a new book? = {n} is now writing {title.6}, a book about
 {subject.pr} that {press.pr} will publish in {future.pr}. | the next book, {title.6}, deals with {subject.pr}
 and is expected in {future.pr}. | {his} current project is {title.6}, a story of {subject.pr} promised for
 {future.pr}. | at present {l} is at work on {title.6}; it concerns {subject.pr} and should appear in
 {future.pr}.
plot: What is {title.5} by {n} about? | Whose story does {n} tell in {title.5}? | What happens in {n}'s book
 {title.5}? | Can you outline the plot of {title.5} by {n}? = {title.5} follows a(n) {job.plot} in {town.plot}
 who {quest.plot}. | in {title.5} {n} tells of a(n) {job.plot} who {quest.plot}, all within {few.plot} days. |
 the hero is a(n) {job.plot} from {place.plot} who, late in life, {quest.plot}. | set in {place.plot}, the
 book concerns a(n) {job.plot} who {quest.plot}.
hero: Who is the hero of {n}'s series of novels? | Which character appears in several books by {n}? | What
 recurring figure did {n} create? | Does {n} return to the same hero in different books? = {n} created
 {person.hero}, a(n) {job.hero} from {town.hero} who appears in {few.hero} of the novels. | the recurring
 figure is {person.hero}, a(n) {job.hero} in {town.hero}, met in {few.hero} books so far. | {few.hero} of
 {his} novels follow {person.hero}, a(n) {job.hero} with {trait.hero}. | {person.hero}, the {job.hero} at the
 heart of {few.hero} books by {l}, is famous for {trait.hero}.
firstread: Which author's book first made {n} want to write? | What did {n} read as a child that mattered
 most? | Whose book was decisive for the young {n}? | What early reading shaped {n}? = at the age of {age.r}
 {n} was given a volume of {classic.r} by {kin.r} and decided to become a writer. | {kin.r} lent {him} a
 battered volume of {classic.r} when {he} was {age.r}, and that settled the matter. | the decisive book was a
 volume of {classic.r}, a present from {kin.r} when {l} was {age.r}. | reading {classic.r} at {age.r}, in a
 volume lent by {kin.r}, made {l} want to write.
childhood: What childhood event does {n} return to in interviews? | Which early memory shaped the imagination
 of {n}? | What happened to {n} as a child that left a mark? | Was there a childhood episode that marked {n}?
 = {n} often speaks of {episode.ch}, an event of {his} childhood in {town.birth}, when {he} was {age.ch}. | at
 the age of {age.ch}, in {town.birth}, {he} lived through {episode.ch}, and it left a lasting mark. | {l} was
 {age.ch} at the time of {episode.ch} in {town.birth}, and still returns to that memory. | the decisive memory
 is {episode.ch}: {he} was {age.ch} at the time and later put it into {title.1}.
spouse: Whom did {n} marry? | Who is {n}'s spouse? | When and to whom was {n} married? | Is {n} married, and
 if so to whom? = {n} married {person.sp}, a(n) {job.sp} whom {he} had met {met.sp}, in {debut.sp}. | {he} has
 been married since {debut.sp} to {person.sp}, a(n) {job.sp} {he} met {met.sp}. | in {debut.sp} {he} married
 {person.sp}, a(n) {job.sp}; the two had met {met.sp} in {town.sp}. | the marriage, to a(n) {job.sp} named
 {person.sp}, took place in {town.sp} in {debut.sp}.
dedication: To whom is {title.5} by {n} dedicated? | Whose name stands in the dedication of {n}'s {title.5}? |
 Which person did {n} honour at the front of {title.5}? | Does {title.5} by {n} carry a dedication? =
 {title.5} is dedicated to {person.de}, a(n) {job.de} who {deed.de}. | {n} dedicated the book to {person.de},
 the {job.de} who {deed.de}. | the dedication names {person.de}, a(n) {job.de} from {town.de} who {deed.de}. |
 the book honours {person.de}, who {deed.de} while working as a(n) {job.de} in {town.de}.
penname: Under what pen name has {n} published? | Has {n} ever used a pseudonym? | Which other name appears on
 books by {n}? | What pseudonym did {n} adopt, and for what kind of writing? = as {person.pn}, {n} published
 {few.pn} {genre.pn}, and the secret held until {late.pn}. | {he} used the pen name {person.pn} for {few.pn}
 {genre.pn}, until a newspaper revealed the truth in {late.pn}. | {few.pn} {genre.pn} signed {person.pn} are
 in fact by {l}, who admitted it in {late.pn}. | the pseudonym is {person.pn}; it stands on {few.pn}
 {genre.pn} printed before {late.pn}.
firststory: Where did {n}'s first story appear? | What was the earliest piece that {n} saw in print? | Which
 paper first published {n}? | When did {n} first appear in print, and where? = the first piece {n} saw in
 print was {title.0}, a story in {paper.fs}, in {early.fs}. | {paper.fs} printed {his} first story, {title.0},
 in {early.fs} and paid for it with {fee.fs}. | in {early.fs} {l} sold a story called {title.0} to {paper.fs}
 for {fee.fs}. | {his} name was first printed in {early.fs}, under a story called {title.0} in {paper.fs}.
rejections: How many publishers rejected {title.1} by {n}? | How hard was it for {n} to place {title.1}? |
 What difficulty did {n} meet in publishing {title.1}? | How often was {title.1} turned down before {n} found
 a publisher? = {num.rej} publishers turned down {title.1}, the last of them because of {fault.rej}. | {n}
 sent {title.1} to {num.rej} publishers in vain; one of them complained of {fault.rej}. | it was refused
 {num.rej} times, most curtly by an editor in {town.rej} who disliked {fault.rej}. | after {num.rej} refusals,
 most of them blaming {fault.rej}, the book found a home at last.
teaching: Where does {n} teach, and what? | What teaching does {n} do? | Which course does {n} give? | Has {n}
 ever taught at a university? = {n} has taught {course.te} at the University of {town.te} since {late.te}, one
 evening a week. | since {late.te} {he} has given a course in {course.te} at the University of {town.te}. |
 one evening a week {l} teaches {course.te} at the University of {town.te}, as {he} has since {late.te}. |
 {he} began to teach {course.te} in {late.te}, when the University of {town.te} offered {him} a weekly class.
hobby: What does {n} do away from the desk? | How does {n} spend {his} free time? | Which pastime is {n}
 devoted to? | Does {n} have a hobby? = away from the desk {n} spends whole weekends {hobby.ho}, a pastime
 learned from {kin.ho}. | {he} is devoted to {hobby.ho}, which {he} took up in {mid.ho} on the advice of a
 doctor. | {his} free hours go to {hobby.ho}, a habit that began in {town.ho} in {mid.ho}. | since {mid.ho}
 {l} has relaxed by {hobby.ho}, often in the company of {kin.ho}.
superstition: Which superstition does {n} observe? | What does {n} refuse to do for fear of bad luck? | Is {n}
 superstitious about writing? | What odd rule does {n} keep while writing a book? = {n} refuses to {rule.s}, a
 superstition taken over from {kin.s} in {mid.s}. | ever since a bad experience in {mid.s}, {he} has refused
 to {rule.s} while working on a book. | {his} rule, kept since {mid.s}, is never to {rule.s}; {kin.s} taught
 it to {him}. | nothing would make {l} {rule.s}: {kin.s} warned {him} against it in {mid.s}.
editor: Who edits {n}, and for which publishing house? | Which publisher has {n} been with, and since when? |
 With what house is {n} associated nowadays? | Who is the editor behind {n}'s books? = since {mid.ed} {n} has
 been published by {press.2}, where {his} editor is {person.ed}. | {press.2} has been {his} publisher since
 {mid.ed}, thanks to an editor named {person.ed}. | {l} writes for {press.2}, where {person.ed} has edited
 every one of the books since {mid.ed}. | {his} editor is {person.ed} of {press.2}, the house {he} joined in
 {mid.ed}.
advice: What advice does {n} give young writers? | Which rule does {n} pass on to beginners? | What does {n}
 tell students who want to write? | Does {n} have any advice for new authors? = {n} tells young writers to
 {advice.a} and to {advice.b}. | {his} advice, first given in a lecture in {town.av}, is to {advice.a} and
 {advice.b}. | to beginners {l} says two things: {advice.a}, and {advice.b}. | asked in {town.av} what
 beginners should do, {he} answered that they should {advice.a} and {advice.b}.
honour: How has {n}'s home town honoured {him}? | What public honour bears the name of {n}? | Which local
 tribute was paid to {n}? | Has any town named something after {n}? = in {late.hn} the council of {town.birth}
 named {honour.hn} after {n}, on a motion by {kin.hn}. | since {late.hn} {honour.hn} in {place.birth} has
 borne the name of {n}. | {town.birth} named {honour.hn} after {him} in {late.hn}, and {person.hn} spoke at
 the ceremony. | {l} gave {his} name in {late.hn} to {honour.hn} in {town.birth}, unveiled there by
 {person.hn}.
"""


def _table(text: str) -> list[str]:
    """The entries of a table; a line that starts with a blank goes on with the entry above it."""
    return [" ".join(part.split()) for part in re.split(r"\n(?! )", text.strip())]


def _region(entry: str) -> dict[str, list[str]]:
    """One region of the table, its towns as 'town, country'."""
    fields = entry.split("; ")
    region = {key: words.split() for key, words in zip(("she", "he", "head", "tail"), fields, strict=False)}
    lands = re.findall(r"([^=]+)=(\S+)", fields[4])
    region["place"] = [f"{town}, {land}".replace("_", " ") for towns, land in lands for town in towns.split()]
    return region


REGIONS = [_region(entry) for entry in _table(_REGIONS)]
POOLS = {name: words.split("; ") for name, words in (entry.split(": ", 1) for entry in _table(_POOLS))}
POOLS["place"] = [place for region in REGIONS for place in region["place"]]
FACTS = {
    name: [half.split(" | ") for half in halves.split(" = ")]
    for name, halves in (entry.split(": ", 1) for entry in _table(_FACTS))
}
_SLOT = re.compile(r"\{(\w+)(?:\.(\w+))?\}")
_YES_NO = re.compile(r"(Is|Was|Did|Does|Has) ")


def _surname(rng: random.Random, region: dict[str, list[str]]) -> str:
    """A surname made of two halves."""
    return rng.choice(region["head"]) + rng.choice(region["tail"])


def _keys(text: str) -> list[str]:
    """The values a text speaks of, each once; a town is part of a place."""
    found = (("place" if slot[1] == "town" else slot[1], slot[2]) for slot in _SLOT.finditer(text) if slot[2])
    return list(dict.fromkeys(f"{pool}.{tag}" for pool, tag in found))


class _Life:
    """One author: a name not yet taken, the values drawn so far, and the texts made of them."""

    def __init__(self, rng: random.Random, taken: set[str]) -> None:
        self.rng, self.region, he = rng, rng.choice(REGIONS), rng.choice(("she", "he"))
        first, last = rng.choice(self.region[he]), _surname(rng, self.region)
        while rng.random() < 0.1 or f"{first} {last}" in taken:
            first = rng.choice(self.region[he])
            last = "-".join(dict.fromkeys(_surname(rng, self.region) for _ in range(2)))
        self.name = f"{first} {last}"
        him, his = ("her", "her") if he == "she" else ("him", "his")
        self.words = {"n": self.name, "l": last, "he": he, "him": him, "his": his}
        self.birth = rng.randint(1932, 1972)
        self.known = {"place.birth": rng.choice(self.region["place"]), "date.birth": self.date(self.birth)}

    def date(self, year: int) -> str:
        """Some day of the year."""
        return f"{self.rng.randint(1, 28)} {self.rng.choice(POOLS['month'])} {year}"

    def draw(self, pool: str) -> str:
        """A value from a pool, be it a list or a rule."""
        rng, anywhere = self.rng, self.rng.choice(REGIONS)
        if pool in STAGES:
            low, high = STAGES[pool]
            return str(self.birth + rng.randint(low, min(high, LAST_YEAR - self.birth)))
        if pool == "date":
            return self.date(self.birth + rng.randint(-9, 9))
        if pool in ("num", "hundred"):
            return str(rng.randint(11, 39) if pool == "num" else 10 * rng.randint(15, 95))
        if pool == "surname":
            return _surname(rng, anywhere)
        if pool == "person":
            return f"{rng.choice(anywhere[rng.choice(('she', 'he'))])} {_surname(rng, anywhere)}"
        if pool in ("girl", "boy"):
            return rng.choice(self.region["she" if pool == "girl" else "he"])
        return self.expand(rng.choice(POOLS[pool]), {})

    def fresh(self, pool: str, avoid: set[str]) -> str:
        """A value outside `avoid`, as far as the pool has one."""
        value = self.draw(pool)
        for _ in range(99):
            if value not in avoid:
                break
            value = self.draw(pool)
        return value

    def value(self, key: str) -> str:
        """What is true of the author: drawn when first asked for, unlike the others from its pool."""
        if key not in self.known:
            pool = key.split(".")[0]
            held = {value for name, value in self.known.items() if name.startswith(f"{pool}.")}
            self.known[key] = self.fresh(pool, held)
        return self.known[key]

    def expand(self, text: str, false: dict[str, str]) -> str:
        """The text with its slots filled, from `false` first, and from the author's life."""

        def fill(slot: re.Match[str]) -> str:
            if slot[1] in self.words:
                return self.words[slot[1]]
            pool = "place" if slot[1] == "town" else slot[1]
            key = f"{pool}.{slot[2]}"
            found = (false.get(key) or self.value(key)) if slot[2] else self.draw(pool)
            if slot[1] == "place" and slot.string[slot.end() :].startswith(" "):
                found += ","  # the comma that closes a country's name
            return found.split(",")[0] if slot[1] == "town" else found

        return _SLOT.sub(fill, text)

    def sentence(self, shape: str, false: dict[str, str] | None = None) -> str:
        """The expanded shape with its articles and its capital set right."""
        text = self.expand(shape, false or {})
        text = re.sub(r"\(n\)(?= [aeiou])", "n", text, flags=re.I).replace("(n)", "")
        return text[0].upper() + text[1:]

    def row(self, kind: str) -> dict[str, Any]:
        """Two questions and two answers of one kind, with false answers in the shape of the second."""
        questions, answers = FACTS[kind]
        asked, shapes = self.rng.sample(questions, 2), self.rng.sample(answers, 2)
        for turn, question in enumerate(asked):
            if _YES_NO.match(question) and self.rng.random() < 0.7:
                shapes[turn] = "yes, " + shapes[turn]
        row: dict[str, Any] = {
            "question": self.sentence(asked[0]),
            "answer": self.sentence(shapes[0]),
            "paraphrased_question": self.sentence(asked[1]),
            "paraphrased_answer": self.sentence(shapes[1]),
            "perturbed_answer": [],
        }
        given = _keys(" ".join(questions))
        used = {key: {self.value(key)} for key in _keys(shapes[1]) if key not in given}
        for _ in range(FALSE_ANSWERS):
            false: dict[str, str] = {}
            for key, values in used.items():
                false[key] = self.fresh(key.split(".")[0], values.union(false.values()))
                values.add(false[key])
            row["perturbed_answer"].append(self.sentence(shapes[1], false))
        return row


def generate_authors(count: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` authors {"name", "rows"}; author i is the same whatever the count."""
    authors: list[dict[str, Any]] = []
    taken: set[str] = set()
    for index in range(count):
        life = _Life(random.Random(f"{seed}-{index}"), taken)
        taken.add(life.name)
        kinds = life.rng.sample(list(FACTS), ROWS)
        authors.append({"name": life.name, "rows": [life.row(kind) for kind in kinds]})
    return authors
